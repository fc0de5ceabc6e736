"""The tests that reach each line, in the test's own process and in the processes that it starts.

Each file of tests runs by itself under coverage, with its name as the context. The environment hands the context on to
every process that the tests start, so that lines that only workers run have their tests too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

_SETTINGS = """
[run]
source = producers,workers,results_store
parallel = true
context = ${ARGOSY_TEST_FILE}
patch = subprocess
concurrency = thread
sigterm = true
data_file = {folder}/data
"""

#: Seconds for one file of tests under coverage.
_LONGEST_S = 900


def covering(root: Path, file: Path, tests: list[str]) -> dict[str, dict[str, list[int]]]:
    """Return, by file of tests, the lines that it reaches by path, and its seconds under "". Kept in `file`."""
    kept: dict[str, dict[str, list[int]]] = json.loads(file.read_text()) if file.exists() else {}
    for test in tests:
        if test not in kept:
            began = time.monotonic()
            reached = _reached(root, test)
            kept[test] = {**reached, "": [round(time.monotonic() - began)]}
            file.write_text(json.dumps(kept))
            print(f"{test}: {sum(map(len, reached.values()))} lines, {kept[test][''][0]} s", flush=True)
    return kept


def _reached(root: Path, test: str) -> dict[str, list[int]]:
    from coverage import CoverageData

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
            subprocess.run(
                command,
                cwd=root,
                env=environment,
                check=False,
                timeout=_LONGEST_S,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            print(f"{test}: no end after {_LONGEST_S} s")
        lines: dict[str, set[int]] = defaultdict(set)
        for part in Path(folder).glob("data.*"):
            try:
                data = CoverageData(str(part))
                data.read()
            except Exception as error:  # noqa: BLE001 - of a process that was killed while it wrote
                print(f"{test}: {part.name}: {error}")
                continue
            for path in data.measured_files():
                if Path(path).is_relative_to(root):
                    lines[str(Path(path).relative_to(root))].update(data.lines(path) or ())
        return {path: sorted(found) for path, found in sorted(lines.items())}
