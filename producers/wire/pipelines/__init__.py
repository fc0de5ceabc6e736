"""Pipelines on the wire: the plan kept with a job, and the selectors that turn a step's output into an input."""
