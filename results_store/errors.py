"""The base of all errors of Argosy, and the store's errors, grouped by their cause."""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound="ArgosyError")


class ArgosyError(Exception):
    """Base of every error that Argosy raises on purpose.

    If the error ended a `submit_many` midway, `job` is the job of the items accepted before.
    """

    job: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle or copy the error as it is, whatever its class takes to be made: pools of processes return errors."""
        return _remade, (type(self), self.args, dict(self.__dict__))


def _remade(kind: type[E], args: tuple[Any, ...], attributes: dict[str, Any]) -> E:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class StoreError(ArgosyError):
    """Base of the store's errors."""


# --- Errors of the caller: nothing was written; correct the call. -------------------------------


class UnknownJob(StoreError, LookupError):
    """No job has this id."""


class UnknownBatch(StoreError, LookupError):
    """No micro-batch with this id is recorded."""


class InvalidRow(StoreError, ValueError):
    """A row that the database cannot hold; `str()` names the field."""


class SubmissionConflict(StoreError):
    """Another caller has added items to this job meanwhile. Read the job again before you continue."""


class TooManyChanges(StoreError):
    """A job's priority was changed a moment ago. Change it again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# --- Errors of the installation: the URL or the schema. ------------------------------------------


class SchemaMismatch(StoreError):
    """The database's schema is not the version that this code needs; `str()` names the command that upgrades it."""


# --- Errors of the database: the call was right; repeat it later. --------------------------------


class StoreUnavailable(StoreError, ConnectionError):
    """The database cannot be reached, or is busy for longer than allowed. Nothing was written; try again.

    One case is uncertain: a connection that is lost during COMMIT. Every write of the store may therefore be repeated;
    if the first was stored after all, the second has no effect.
    """
