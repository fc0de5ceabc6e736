"""Pipelines as a user writes them: `Pipeline`, the job that comes of submitting one, and its tree of results."""
