"""The programs that made the shipped heads: in the repository, not in the wheel. docs/training.md says how to run
each.
"""
