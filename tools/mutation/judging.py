"""Judge a change: run the tests that reach its line, quick ones first, until one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.mutation.covering import TestFile
from tools.mutation.mutants import Mutant

#: The tests for a change take about this many seconds when nothing is changed.
BUDGET_S = 240

#: The seconds of a run of no test: imports.
_START_S = 4

#: The seconds that a test may take beyond its own: fixtures that another test set up when it was timed.
_SETUP_S = 60

#: pytest's exit status if a file has no tests to run.
_NO_TESTS = 5

#: Tests that run this many times longer than without the change count as failed.
PATIENCE = 4


@dataclass(frozen=True)
class Judge:
    """Tests that run together, with about the seconds that they take, and those of the longest."""

    targets: tuple[str, ...]
    seconds: float
    longest: float


def tests_of(mutant: Mutant, text: str, files: Mapping[str, TestFile]) -> list[Judge]:
    """Return the tests that reach the change, within the budget: functions first, then whole files, the quick ones
    first.

    `text` is the digest of the changed module. If it has changed since the files ran, or if the line runs at the
    import, every test is taken that reaches the module.
    """
    functions, whole = _reaching(mutant, text, files, line=not mutant.at_import)
    if not functions and not whole:
        functions, whole = _reaching(mutant, text, files, line=False)
    spent = float(_START_S)
    targets: list[str] = []
    longest = 0.0
    for seconds, target in sorted(functions):
        if spent + seconds <= BUDGET_S:
            targets.append(target)
            spent += seconds
            longest = seconds
    judges = [Judge(tuple(targets), spent, longest)] if targets else []
    for seconds, target in sorted(whole):
        if not judges or spent + _START_S + seconds <= BUDGET_S:
            judges.append(Judge((target,), _START_S + seconds, seconds))
            spent += _START_S + seconds
    return judges


Timed = list[tuple[float, str]]


def _reaching(mutant: Mutant, text: str, files: Mapping[str, TestFile], *, line: bool) -> tuple[Timed, Timed]:
    """Return the functions and the whole files that reach the change's line, or if not `line` its module."""
    functions: Timed = []
    whole: Timed = []
    for file, found in files.items():
        module = found["modules"].get(mutant.path)
        if module is None:
            continue
        names = {
            name
            for name, lines in module["lines"].items()
            if not line or module["text"] != text or _within(lines, mutant.statement)
        }
        if "" in names and found["passed"]:
            whole.append((sum(found["seconds"].values()), file))
        else:
            functions += [(found["seconds"][name], f"{file}::{name}") for name in names & found["seconds"].keys()]
    return functions, whole


def _within(lines: list[int], statement: tuple[int, int]) -> bool:
    first, last = statement
    return any(first <= line <= last for line in lines)


def judge(tree: Path, mutant: Mutant, tests: list[Judge]) -> dict[str, Any]:
    """Return the verdict: killed or survived, by which tests, in how many seconds."""
    file = tree / mutant.path
    source = file.read_text()
    began = time.monotonic()
    file.write_text(mutant.apply(source))
    try:
        killer = next((own.targets for own in tests if _fails(tree, own)), None)
    finally:
        file.write_text(source)
    by = None if killer is None else killer[0] if len(killer) == 1 else f"{len(killer)} functions"
    verdict = "killed" if killer else "survived"
    return {"verdict": verdict, "by": by, "tests": len(tests), "seconds": round(time.monotonic() - began)}


def _fails(tree: Path, tests: Judge) -> bool:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--timeout={_SETUP_S + PATIENCE * tests.longest:.0f}", *tests.targets]
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(_SETUP_S + PATIENCE * tests.seconds) not in (0, _NO_TESTS)
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
