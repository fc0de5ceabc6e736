"""Pipelines as a user writes them: `Pipeline`, its job, and its results as trees."""
