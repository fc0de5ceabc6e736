"""``argosy train``: recipes, their rows, and the folders that they come to."""
