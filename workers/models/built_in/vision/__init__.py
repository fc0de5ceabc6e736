"""The built-in image models: classification, detection and style."""
