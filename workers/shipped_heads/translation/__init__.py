"""The programs that made the shipped translation model."""
