"""What users train and judge models with; each program runs by `python -m`."""
