"""The `argosy` command: submit, results, status, and what operators need."""
