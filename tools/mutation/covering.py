"""The tests that reach each line, in the test's own process and in the processes that it starts.

Each file of tests runs by itself under coverage, with its name as the context. The environment hands the context on to
every process that the tests start, so that lines that only workers run have their tests too.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TypedDict

_SETTINGS = """
[run]
source = producers,workers,results_store
parallel = true
context = ${ARGOSY_TEST_FILE}
patch =
    subprocess
    _exit
concurrency = thread
sigterm = true
data_file = {folder}/data
"""

#: Seconds for one file of tests under coverage.
_LONGEST_S = 900


class Reached(TypedDict):
    """A run of a file of tests without a change: its text, its outcome, and the text and lines of each module."""

    test: str
    passed: bool
    seconds: int
    modules: dict[str, tuple[str, list[int]]]


def covering(root: Path, file: Path, tests: list[str]) -> dict[str, Reached]:
    """Return the runs of these files of tests. They are kept in `file`; a file whose text has changed runs again."""
    kept: dict[str, Reached] = json.loads(file.read_text()) if file.exists() else {}
    for test in tests:
        if test not in kept or kept[test]["test"] != text_of(root / test):
            kept[test] = reached = _reached(root, test)
            file.write_text(json.dumps(kept))
            lines = sum(len(found) for _, found in reached["modules"].values())
            outcome = "" if reached["passed"] else "; it FAILS without a change, and judges nothing"
            print(f"{test}: {lines} lines, {reached['seconds']} s{outcome}", flush=True)
    return {test: kept[test] for test in tests}


def text_of(path: Path) -> str:
    """Return a digest of a file's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _reached(root: Path, test: str) -> Reached:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "settings")
        settings.write_text(_SETTINGS.replace("{folder}", folder))
        environment = {
            **os.environ,
            "ARGOSY_TEST_FILE": test,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
        }
        coverage = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m"]
        command = [*coverage, "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", test]
        try:
            ended = subprocess.run(
                command,
                cwd=root,
                env=environment,
                check=False,
                timeout=_LONGEST_S,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            passed = ended.returncode == 0
        except subprocess.TimeoutExpired:
            passed = False
        seconds = round(time.monotonic() - began)
        lines = {path: (text_of(root / path), sorted(found)) for path, found in sorted(_lines(root, folder).items())}
        return {"test": text_of(root / test), "passed": passed, "seconds": seconds, "modules": lines}


def _lines(root: Path, folder: str) -> dict[str, set[int]]:
    from coverage import CoverageData

    lines: dict[str, set[int]] = defaultdict(set)
    for part in Path(folder).glob("data.*"):
        try:
            data = CoverageData(str(part))
            data.read()
        except Exception as error:  # noqa: BLE001 - of a process that was killed while it wrote
            print(f"{part.name}: {error}")
            continue
        for path in data.measured_files():
            if Path(path).is_relative_to(root):
                lines[str(Path(path).relative_to(root))].update(data.lines(path) or ())
    return lines
