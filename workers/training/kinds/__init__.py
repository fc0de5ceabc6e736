"""The kinds of tasks that `argosy train` trains: labels, losses and metrics."""
