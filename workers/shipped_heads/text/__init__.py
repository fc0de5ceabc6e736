"""The programs that made the shipped text heads."""
