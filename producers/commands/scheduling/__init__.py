"""Submissions by the clock: `argosy schedule`, and the process that makes them."""
