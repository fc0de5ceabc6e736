"""The client: it submits items, follows their jobs and returns their results."""
