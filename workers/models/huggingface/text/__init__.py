"""Checkpoints that read or write text."""
