"""What waits for its time, what an operator has paused, and the priority of what waits."""
