"""The built-in model that reads a text together with an image."""
