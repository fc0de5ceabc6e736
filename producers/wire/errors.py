"""What can go wrong, sorted by whose fault it is. Every message says what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from results_store.errors import ArgosyError as ArgosyError  # noqa: PLC0414 - exported from here

# --- The caller's: nothing was sent; correct the call and repeat it. ---------------------------


class InvalidInput(ArgosyError, ValueError):
    """A field of a submission is not what it must be.

    `field` is the dotted path of what is wrong (``items[3].input``), `problem` what is wrong
    with it, `remedy` what to do about it.
    """

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        super().__init__(field, problem, remedy)
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def of_part(self, part: str) -> InvalidInput:
        """Return the same error, of a part of the field."""
        return type(self)(f"{self.field}.{part}", self.problem, self.remedy)

    def __str__(self) -> str:
        text = f"{self.field}: {self.problem}"
        return f"{text}; {self.remedy}" if self.remedy else text


class UnknownTask(InvalidInput):
    """A task that the catalogue does not have."""

    def __init__(self, task: str, known: Sequence[str], field: str = "task") -> None:
        near = get_close_matches(task, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(sorted(known))}"
        super().__init__(field, f"no task {task!r}", remedy)


class InputTooLarge(InvalidInput):
    """An input over a limit in bytes, characters, pixels or tokens."""


class InputUnavailable(InvalidInput):
    """A file or URL that the worker could not read or fetch. It may be there later: submit it again."""


class InvalidMessage(ArgosyError, ValueError):
    """A message on the wire that cannot be read: wrong type, wrong version, missing field."""


class ConfigurationError(ArgosyError):
    """A setting is missing or wrong; `str()` names it and where it is read from."""


# --- The fleet's: the call was right; try again later or look at the fleet. --------------------


class BrokerUnavailable(ArgosyError, ConnectionError):
    """The Redis broker cannot be reached. What was already accepted is safe in the store."""


class BlobsUnavailable(ArgosyError, ConnectionError):
    """The place for large inputs cannot be reached or written. Nothing of the call was accepted."""


class FileUnavailable(ArgosyError, OSError):
    """A result's file is not there any more, or not as it was written."""


class Overloaded(ArgosyError):
    """The fleet refuses new work at the door. Nothing of the refused call was accepted.

    `retry_after_s` is when it is worth trying again, where that is known.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """A tenant is over a limit of its own: items a second, or items in flight. The fleet may have room."""


class ResultTimeout(ArgosyError, TimeoutError):
    """The result was not there within `timeout_s`. The work goes on; ask again with the same handle."""


# --- The item's: how one item and task ended when it did not succeed. --------------------------


class ItemFailed(ArgosyError):
    """An item and task ended ``failed``. `kind` is the typed error's name, e.g. ``InputTooLarge``."""

    def __init__(self, task: str, kind: str, message: str) -> None:
        super().__init__(f"{task}: {kind}: {message}")
        self.task = task
        self.kind = kind
        self.message = message


class ItemCancelled(ArgosyError):
    """An item was cancelled before it was computed."""


class ItemExpired(ArgosyError):
    """An item's deadline passed before it was computed."""
