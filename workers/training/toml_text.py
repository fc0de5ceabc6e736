"""The `fleet.toml` that a command writes."""

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


def served_alone(
    name: str, model: Mapping[str, Any], options: Mapping[str, Any], tasks: Mapping[str, str], *, command: str
) -> str:
    """Return the file that serves one model, which a `command` made: its table, its options, and its tasks' kinds."""
    table = f"models.{json.dumps(name)}"
    lines = [
        f"# Made by `argosy {command}`. Serve it: ARGOSY_FLEET=this file argosy up",
        "# Without the table [worker], the built-in models are served, too.",
        "[worker]",
        f"models = [{json.dumps(name)}]",
    ]
    for title, own in (("", model), (".options", options)):
        lines += ["", f"[{table}{title}]", *(f"{key} = {value(given)}" for key, given in own.items())]
    lines += ["", f"[{table}.tasks]", *(f"{json.dumps(task)} = {json.dumps(kind)}" for task, kind in tasks.items())]
    return "\n".join(lines) + "\n"
