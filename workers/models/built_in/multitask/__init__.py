"""What the built-in models share: one backbone, a head for each task, a cache of features."""
