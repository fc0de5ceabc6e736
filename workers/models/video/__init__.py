"""Videos: a few frames read out of a file, the shared image backbone over all of them, a small network over time."""
