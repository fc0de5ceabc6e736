"""The programs that made the shipped heads: in the repository, not in the wheel.

workers/models/heads/README.md has the command of each.
"""
