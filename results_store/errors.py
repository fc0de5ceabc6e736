"""What can go wrong in the store."""

from __future__ import annotations


class StoreError(Exception):
    """Base of the store's errors."""


class StoreUnavailable(StoreError, ConnectionError):
    """The database cannot be reached or is busy beyond the time allowed. Nothing was written; try again."""


class SchemaMismatch(StoreError):
    """The database's schema is not the one this version reads; `str()` says which command brings it up to date."""


class UnknownJob(StoreError, LookupError):
    """No job has this id."""
