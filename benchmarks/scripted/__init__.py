"""The measuring part of `benchmarks.host`: models on a device that sleeps, and passes through a fleet with them.

It is imported under another name, beside the `producers` and `workers` of any tree (`trees.environment`), so that it
measures older commits too. Its own imports are relative.
"""
