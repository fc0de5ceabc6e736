"""Measurements behind the README's claims: ``python -m benchmarks.NAME [--quick]``. See benchmarks/README.md."""
