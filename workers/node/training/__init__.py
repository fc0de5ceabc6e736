"""Trainings of the fleet at a node: taken while nothing else waits, each in a process of its own."""
