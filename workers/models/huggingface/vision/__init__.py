"""Hugging Face checkpoints that read images or videos."""
