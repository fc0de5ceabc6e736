"""Read and type-check a ``fleet.toml``. An error names the wrong setting and suggests a valid name."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from producers.wire.errors import ConfigurationError

T = TypeVar("T")

_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")
_MISSING = re.compile(r"Object missing required field `(.+)`")


#: The tables of a ``fleet.toml``. Each program reads its own; workers refuse all other names.
TABLES = (
    "worker", "limits", "models", "data", "admission", "blobs", "broker", "store", "edge", "log", "retry",
    "result_cache",
)  # fmt: skip


def expanded(path: str | Path) -> Path:
    """Return a path with the user's folder in place of ``~``, if that folder is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `Path.expanduser` raises for a user without a folder


def beside(file: str | Path, path: str) -> Path:
    """Return a path that a file names: a relative one counts from the file's folder."""
    return expanded(file).absolute().parent / expanded(path)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises ConfigurationError."""
    try:
        return tomllib.loads(expanded(path).read_text(encoding="utf-8-sig"))  # Windows' editors begin it with a mark
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}; save it as UTF-8") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}; check --config and ARGOSY_FLEET") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error


def read_fleet(path: str | Path) -> dict[str, Any]:
    """Return the content of a ``fleet.toml`` for a program that reads some of its tables. Raises ConfigurationError.

    A table with almost the name of another is refused: nobody would be told that a misspelt ``[limits]`` redacts
    nothing.
    """
    file = read_toml(path)
    for name in file:
        if name not in TABLES and get_close_matches(name.lower(), TABLES, cutoff=0.8):
            raise ConfigurationError(f"{path}: {name}: no such table; {known(name.lower(), TABLES)}")
    return file


def typed(value: object, form: type[T], where: str) -> T:
    """Return a value typed as `form`. Raises ConfigurationError beginning with `where` (``fleet.toml: worker``)."""
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_rephrased(str(error), form, where)) from error


def known(name: str, names: Iterable[str]) -> str:
    """Suggest the most similar of the names, or list all of them."""
    there = list(names)
    near = get_close_matches(name, there, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there)}"


def _rephrased(message: str, form: Any, where: str) -> str:
    """Turn msgspec's message into ours.

    msgspec ends a message with the place: ``- at `$.grace_s` ``, or ``at `key` in `$` `` for a wrong key of a table.
    """
    problem, _, place = message.partition(" - at `")
    path = place.rpartition("$")[2].rstrip("`")
    hints = get_type_hints(form) if isinstance(form, type) and get_origin(form) is None and form is not dict else {}
    hints = {name.rstrip("_"): hint for name, hint in hints.items()}
    if unknown := _UNKNOWN.fullmatch(problem):
        return f"{where}.{unknown[1]}: no such setting; {known(unknown[1], hints)}"
    if missing := _MISSING.fullmatch(problem):
        return f"{where}.{missing[1]}: is missing"
    choices = ", ".join(_choices(hints.get(path.lstrip(".").partition("[")[0])))
    return f"{where}{path}: {problem}" + (f"; one of {choices}" if "enum" in problem and choices else "")


def _choices(hint: Any) -> list[str]:
    """Return the words of a Literal type, however deep it lies in `hint`."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for inner in get_args(hint) for word in _choices(inner)]
