"""Checkpoints that see images or videos."""
