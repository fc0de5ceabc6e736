"""The results of `argosy doctor`'s checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from producers.wire.errors import ArgosyError


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check: whether it is `ok`, the thing `found`, and the `remedy` otherwise."""

    about: str
    ok: bool
    found: str
    remedy: str = ""


def checked(about: str, check: Callable[[], Iterable[Finding]], remedy: str = "see its message") -> list[Finding]:
    """Return a check's findings. An error of the check itself, also an unexpected one, is a finding."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except ArgosyError as error:
        found.append(Finding(about, False, str(error), remedy))
    except Exception as error:  # noqa: BLE001 - the other checks go on
        found.append(Finding(about, False, f"the check failed: {type(error).__name__}: {error}", "report this error"))
    return found
