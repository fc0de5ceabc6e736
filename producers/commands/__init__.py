"""The `argosy` command: submit, results, status, and the commands of operators."""
