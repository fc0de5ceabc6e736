"""Submissions by the clock, in a node."""
