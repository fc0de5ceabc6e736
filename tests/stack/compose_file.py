"""compose.yaml as Docker Compose reads it: anchors merged, variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose.yaml"

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?P<rule>:[-?])?(?P<word>[^}]*)\})")


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file with `${NAME}`, `${NAME:-default}` and `${NAME:?message}` replaced.

    Raises KeyError with the message if a variable that must be set is unset or empty.
    """
    loaded: dict[str, Any] = _filled(yaml.safe_load(COMPOSE.read_text("utf-8")), variables)
    return loaded


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, variables) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _replacement(match, variables), value)
    return value


def _replacement(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    found = variables.get(match["name"], "")
    if found or match["rule"] is None:
        return found
    if match["rule"] == ":?":
        raise KeyError(f"{match['name']}: {match['word']}")
    return str(match["word"])
