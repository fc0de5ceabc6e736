"""What can go wrong in the store, sorted by whose fault it is."""

from __future__ import annotations


class StoreError(Exception):
    """Base of the store's errors."""


# --- The caller's: nothing was written; correct the call. ---------------------------------------


class UnknownJob(StoreError, LookupError):
    """No job has this id."""


class UnknownBatch(StoreError, LookupError):
    """No micro-batch with this id is recorded."""


class InvalidRow(StoreError, ValueError):
    """A row that the database cannot hold; `str()` names the field."""


class SubmissionConflict(StoreError):
    """Somebody else has added items to this job meanwhile. Read the job again before going on."""


# --- The installation's: the URL or the schema. -------------------------------------------------


class SchemaMismatch(StoreError):
    """The database's schema is not the one this version reads; `str()` says which command brings it up to date."""


# --- The database's: the call was right; repeat it later. ---------------------------------------


class StoreUnavailable(StoreError, ConnectionError):
    """The database cannot be reached or is busy beyond the time allowed. Nothing was written; try again.

    One case is uncertain: a connection lost while COMMIT was under way. Every write of the store may
    therefore be repeated, and has no further effect if it had been stored after all.
    """
