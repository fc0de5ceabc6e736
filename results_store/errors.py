"""The root of every error of Argosy, and the store's errors, sorted by whose fault they are."""

from __future__ import annotations


class ArgosyError(Exception):
    """Base of every error that Argosy raises on purpose.

    `job`, on an error that ended a `submit_many` midway, is the job that keeps what was accepted before.
    """

    job: str | None = None


class StoreError(ArgosyError):
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
