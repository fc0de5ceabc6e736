"""What a model's options may be, which an operator writes: a wrong one is named when the worker starts, with those that exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from producers.wire.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Option:
    """What the value of an option must be, in words and as a test."""

    must_be: str
    fits: Callable[[Any], bool]


#: The options that a model's class has, by name.
Options: TypeAlias = Mapping[str, Option]


def _is_number(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def whole(least: int) -> Option:
    """What counts something."""
    return Option(f"a whole number, {least} or more", lambda value: _is_number(value, int) and value >= least)


COUNT = whole(1)

OVER_ZERO = Option("a number over 0", lambda value: _is_number(value, int, float) and value > 0)

#: A name, or where a folder is. What is not to be had, the model finds itself.
TEXT = Option("a text", lambda value: isinstance(value, str))

#: One value for each task, or for each model used.
TABLE = Option("a table of names and values", lambda value: isinstance(value, Mapping))


def check(given: Mapping[str, Any], known: Options, *, where: str) -> None:
    """Raise ConfigurationError for an option that is not among those known, most likely misspelt, or has a value of no use."""
    for name, value in given.items():
        if name not in known:
            remedy = f"these are: {', '.join(sorted(known))}" if known else "the model has none"
            raise ConfigurationError(f"{where}.options.{name}: not an option; {remedy}")
        if not known[name].fits(value):
            raise ConfigurationError(f"{where}.options.{name}: must be {known[name].must_be}, not {value!r}")
