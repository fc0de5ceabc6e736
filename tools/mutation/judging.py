"""Judge a change: run the tests that reach its line, quick files first, until one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.mutation.covering import Reached
from tools.mutation.mutants import Mutant

#: The files of tests for a change take at most this many seconds when nothing is changed; at least one is run.
BUDGET_S = 420

#: pytest's exit status if a file has no tests to run.
_NO_TESTS = 5

#: A file that runs this many times longer than without the change counts as failed.
PATIENCE = 4


def tests_of(mutant: Mutant, text: str, runs: dict[str, Reached]) -> list[tuple[str, int]]:
    """Return the files of tests that reach the change, with their seconds: within the budget, the quick ones first.

    `text` is the digest of the changed module. Where it has changed since the run of a file, the lines have moved, and
    every file that reaches the module is taken. A line that runs at the import is reached by nearly every file: those
    are taken of whose lines the module has the largest share.
    """
    first, last = mutant.statement
    changed = range(first, last + 1)
    reaching: list[tuple[int, float, str]] = []
    for test, run in runs.items():
        known, lines = run["modules"].get(mutant.path, ("", []))
        if run["passed"] and lines and (known != text or not set(lines).isdisjoint(changed)):
            share = len(lines) / sum(len(own) for _, own in run["modules"].values())
            reaching.append((run["seconds"], share, test))
    if mutant.at_import:
        reaching.sort(key=lambda found: -found[1])
    else:
        reaching.sort()
    chosen: list[tuple[str, int]] = []
    spent = 0
    for seconds, _, test in reaching:
        if not chosen or spent + seconds <= BUDGET_S:
            chosen.append((test, seconds))
            spent += seconds
    return sorted(chosen, key=lambda pair: pair[1])


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
        return process.wait(limit_s) not in (0, _NO_TESTS)
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
