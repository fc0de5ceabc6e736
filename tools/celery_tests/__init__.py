"""Celery's own integration tests with a result backend of Argosy: a runner, and the plugin that notes outcomes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

#: From the least to the most telling.
_OUTCOMES = ["passed", "skipped", "xfailed", "xpassed", "failed"]


def worst(outcomes: Iterable[str]) -> str:
    """Return the outcome that counts: of a test's phases and subtests, or of its runs."""
    return max(outcomes, key=_OUTCOMES.index)


def noted(file: Path) -> dict[str, str]:
    """Return the outcomes of a run so far, by test."""
    return dict(json.loads(line) for line in file.read_text().splitlines()) if file.exists() else {}
