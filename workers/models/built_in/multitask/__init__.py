"""The common base of the built-in models: one backbone, a head for each task, a cache of features."""
