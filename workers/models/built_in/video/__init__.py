"""The built-in video model."""
