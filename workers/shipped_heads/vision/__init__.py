"""The programs that made the shipped image models."""
