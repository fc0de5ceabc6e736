"""Values of a `fleet.toml` that a command writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def value(given: Any) -> str:
    """Return a text, number, truth value, list or table as TOML; tables are inline."""
    if isinstance(given, Mapping):
        return "{ " + ", ".join(f"{json.dumps(name)} = {value(own)}" for name, own in given.items()) + " }"
    if isinstance(given, list | tuple):
        return "[" + ", ".join(map(value, given)) + "]"
    return json.dumps(given, ensure_ascii=False)
