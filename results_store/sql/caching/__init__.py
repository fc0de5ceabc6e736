"""Results that are kept for later jobs."""
