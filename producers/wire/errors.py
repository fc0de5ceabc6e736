"""All errors, grouped by cause: the caller, the fleet, the item. Every message names a remedy."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from results_store.errors import ArgosyError as ArgosyError  # noqa: PLC0414 - exported from here
from results_store.errors import SubmissionConflict


def without_text(error: BaseException) -> str:
    """Return an error's class and the places that it came through, for logs: its text may hold an input."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__} at {places or 'no place'}"


#: The most characters of an unknown name that are compared with others and shown.
_LONGEST_NAME = 200

# --- The caller's errors: nothing was sent; correct the call and repeat it. --------------------


class InvalidInput(ArgosyError, ValueError):
    """A field of a submission is invalid.

    `field` is its dotted path (``items[3].input``), `problem` says why it is wrong, `remedy` how to correct it. A lone
    argument is the problem of the ``input``.
    """

    def __init__(self, field: str, problem: str = "", remedy: str = "") -> None:
        if not problem:
            field, problem = "input", field
        super().__init__(field, problem, remedy)
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def of_part(self, part: str) -> InvalidInput:
        """Return the same error for a part of the field."""
        return type(self)(f"{self.field}.{part}", self.problem, self.remedy)

    def __str__(self) -> str:
        text = f"{self.field}: {self.problem}"
        return f"{text}; {self.remedy}" if self.remedy else text


class KeyConflict(SubmissionConflict, InvalidInput):
    """An idempotency key that belongs to another submission. `job` is None: nothing was accepted."""


class KeyOfCancelledJob(KeyConflict):
    """An idempotency key of a job that was cancelled; `cancelled` is the job's id."""

    def __init__(self, job: str) -> None:
        problem = f"belongs to the job {job}, which was cancelled"
        super().__init__("idempotency_key", problem, "choose another key (`argosy submit --again`)")
        self.cancelled = job


class UnknownTask(InvalidInput):
    """A task that is not in the catalogue."""

    def __init__(self, task: str, known: Sequence[str], field: str = "task") -> None:
        task = task if len(task) <= _LONGEST_NAME else f"{task[:_LONGEST_NAME]}…"
        near = get_close_matches(task, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(sorted(known))}"
        super().__init__(field, f"no task {task!r}", remedy)


class InputTooLarge(InvalidInput):
    """An input over a limit in bytes, characters, pixels or tokens."""


class InputUnavailable(InvalidInput):
    """A file or URL that the worker could not read or fetch.

    A fault that is `momentary`, such as a host that is away, may pass by itself: the worker tries again, and not before
    `retry_after_s`. A fault of the `whole_place` hits all inputs of the same host or storage.
    """

    def __init__(
        self,
        field: str,
        problem: str = "",
        remedy: str = "",
        *,
        momentary: bool = False,
        whole_place: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(field, problem, remedy)
        self.momentary = momentary
        self.whole_place = whole_place
        self.retry_after_s = retry_after_s

    def of_part(self, part: str) -> InputUnavailable:
        """Return the same error for a part of the field."""
        return type(self)(
            f"{self.field}.{part}",
            self.problem,
            self.remedy,
            momentary=self.momentary,
            whole_place=self.whole_place,
            retry_after_s=self.retry_after_s,
        )


class InvalidMessage(ArgosyError, ValueError):
    """An unreadable message on the wire: wrong type, wrong version, missing field."""


class ConfigurationError(ArgosyError):
    """A missing or wrong setting. `str()` names the setting and its source."""


# --- The fleet's errors: the call was right; try again later or look at the fleet. -------------


class BrokerUnavailable(ArgosyError, ConnectionError):
    """The Redis broker cannot be reached, or refuses commands. Work accepted earlier is safe in the store."""


class BlobsUnavailable(ArgosyError, ConnectionError):
    """The blob storage of large inputs cannot be reached or written. Nothing of the call was accepted."""


class FileUnavailable(ArgosyError, OSError):
    """A result's file is missing or differs from the file that was written."""


class Overloaded(ArgosyError):
    """The fleet refuses new work. Nothing of the refused call was accepted.

    `retry_after_s` is the time to wait before the next attempt, or None if unknown.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """A tenant exceeds its own limit: items per second, or items in flight. The fleet may have capacity left."""


class ResultTimeout(ArgosyError, TimeoutError):
    """The result did not arrive within `timeout_s`. The work goes on; ask again with the same handle."""


# --- The item's errors: the outcome of an item and task that did not succeed. ------------------


class ItemFailed(ArgosyError):
    """An item and task ended as ``failed``. `kind` is the error's type, e.g. ``InputTooLarge``."""

    def __init__(self, task: str, kind: str, message: str) -> None:
        super().__init__(f"{task}: {kind}: {message}")
        self.task = task
        self.kind = kind
        self.message = message


class ItemCancelled(ArgosyError):
    """An item was cancelled before it was computed."""


class StreamRestarted(ArgosyError):
    """The answer of a stream was begun anew and is another text than its pieces; it stands in the stream's `result`."""


class ItemExpired(ArgosyError):
    """An item's deadline passed before it was computed."""
