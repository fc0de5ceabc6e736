"""Options in the previous form of model classes: a table `OPTIONS` of tests by name. Accepted for one release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from producers.wire.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Option:
    """The condition on an option's value, in words and as a test."""

    must_be: str
    fits: Callable[[Any], bool]


def _is_number(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def whole(least: int) -> Option:
    return Option(f"a whole number, {least} or more", lambda value: _is_number(value, int) and value >= least)


COUNT = whole(1)

OVER_ZERO = Option("a number over 0", lambda value: _is_number(value, int, float) and value > 0)

TEXT = Option("a text", lambda value: isinstance(value, str))

TABLE = Option("a table of names and values", lambda value: isinstance(value, Mapping))


def check(given: Mapping[str, Any], known: Mapping[str, Option], *, where: str) -> None:
    """Raise ConfigurationError for an unknown option or a wrong value."""
    for name, value in given.items():
        if name not in known:
            raise unknown(name, known, where=where)
        if not known[name].fits(value):
            raise ConfigurationError(f"{where}.options.{name}: must be {known[name].must_be}, not {value!r}")


def unknown(name: str, known: Mapping[str, object], *, where: str) -> ConfigurationError:
    """Return the error for an unknown option."""
    remedy = f"the options are: {', '.join(sorted(known))}" if known else "the model has no options"
    return ConfigurationError(f"{where}.options.{name}: not an option; {remedy}")
