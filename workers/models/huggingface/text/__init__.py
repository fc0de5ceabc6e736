"""Hugging Face checkpoints that read or write text."""
