"""Judge a change: run the tests that reach its line, quick files first, until one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.mutation.mutants import Mutant

#: The files of tests for a change take at most this many seconds when nothing is changed; at least one is run.
BUDGET_S = 420

#: A file that runs this many times longer than without the change counts as failed.
PATIENCE = 4


def tests_of(mutant: Mutant, lines: dict[str, dict[str, list[int]]]) -> list[tuple[str, int]]:
    """Return the files of tests that reach the change, with their seconds: the quick ones, within the budget."""
    changed = range(mutant.line, mutant.last_line + 1)
    reaching = [
        (test, found[""][0]) for test, found in lines.items() if not set(found.get(mutant.path, ())).isdisjoint(changed)
    ]
    chosen: list[tuple[str, int]] = []
    spent = 0
    for test, seconds in sorted(reaching, key=lambda pair: pair[1]):
        if not chosen or spent + seconds <= BUDGET_S:
            chosen.append((test, seconds))
            spent += seconds
    return chosen


def judge(tree: Path, mutant: Mutant, tests: list[tuple[str, int]]) -> dict[str, Any]:
    """Return the verdict: killed or survived, by which file of tests, in how many seconds."""
    file = tree / mutant.path
    source = file.read_text()
    began = time.monotonic()
    file.write_text(mutant.apply(source))
    try:
        killer = next((test for test, seconds in tests if _fails(tree, test, 60 + PATIENCE * seconds)), None)
    finally:
        file.write_text(source)
    verdict = "killed" if killer else "survived"
    return {"verdict": verdict, "by": killer, "tests": len(tests), "seconds": round(time.monotonic() - began)}


def _fails(tree: Path, test: str, limit_s: float) -> bool:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(limit_s) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # the tests end their own servers
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
