"""Results in chunks: a row for an envelope and task, instead of a row for an item and task."""
