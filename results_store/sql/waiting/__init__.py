"""What waits for its time, and what an operator has paused."""
