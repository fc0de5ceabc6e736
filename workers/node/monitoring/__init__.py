"""What a node tells of itself for metrics."""
