"""Threads that run for good: their loops, their progress, and the items that they work on."""
