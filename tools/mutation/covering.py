"""The tests that reach each line, in pytest's own process and in the processes that tests start.

The suite runs once under coverage (`tools.mutation.recording` names the tests). A line is known by the functions of
tests that reach it, or by a whole file of tests, if a process that the file started reaches it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from tools.mutation import recording

_SETTINGS = f"""
[run]
source = producers,workers,results_store
parallel = true
context = ${{{recording.FILE}-}}
patch =
    subprocess
    _exit
concurrency = thread
sigterm = true
data_file = {{folder}}/data
"""

#: Lines of a module by the function of a test that reaches them; the name "" stands for the whole file.
Lines = dict[str, list[int]]


class Module(TypedDict):
    """A module at the time of the run: the digest of its text, and its lines that tests of a file reach."""

    text: str
    lines: Lines


class TestFile(TypedDict):
    """A file of tests that ran without a change: the digest of its text, the seconds of each function that passed,
    whether all passed, and the modules that it reaches.
    """

    text: str
    passed: bool
    seconds: dict[str, float]
    modules: dict[str, Module]


def covering(root: Path, folder: Path, tests: list[str], modules: set[str], *, jobs: int) -> dict[str, TestFile]:
    """Return what these files of tests reach of some modules.

    The result is kept in a folder; files whose text has changed run again, all of them in one run of pytest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {test: folder / f"{test.replace('/', '.')}.json" for test in tests}
    stale = [test for test in tests if not _holds(kept[test], text_of(root / test))]
    if stale:
        print(f"{len(stale)} files of tests run under coverage", flush=True)
        for test, found in _reached(root, stale, modules, jobs):
            kept[test].write_text(json.dumps(found))
            if not found["passed"]:
                print(f"{test} fails without a change; only its functions that passed judge", flush=True)
    return {test: json.loads(kept[test].read_text()) for test in tests}


def text_of(path: Path) -> str:
    """Return a digest of a file's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _holds(file: Path, text: str) -> bool:
    return file.exists() and json.loads(file.read_text())["text"] == text


def _reached(root: Path, tests: list[str], modules: set[str], jobs: int) -> Iterator[tuple[str, TestFile]]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "settings")
        settings.write_text(_SETTINGS.replace("{folder}", folder))
        environment = {
            **os.environ,
            recording.FOLDER: folder,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
        }
        command = [
            sys.executable,
            "-m",
            "coverage",
            "run",
            f"--rcfile={settings}",
            "-m",
            "pytest",
            "-q",
            "-W",
            "default",
        ]
        command += ["-p", "no:cacheprovider", "-p", "tools.mutation.recording", "-n", str(jobs), "--dist", "loadfile"]
        subprocess.run([*command, *tests], cwd=root, env=environment, check=False, stdout=sys.stderr)
        outcomes = [json.loads(line) for file in Path(folder).glob("*.jsonl") for line in file.open(encoding="utf-8")]
        lines = _lines(root, Path(folder).glob("data.*"), modules)
    failed = {told["test"] for told in outcomes if told["outcome"] == "failed"}
    seconds: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for told in outcomes:
        file, _, name = told["test"].partition("::")
        if told["test"] not in failed:
            seconds[file][name] = seconds[file].get(name, 0.0) + told["seconds"]
    for test in tests:
        known = {path: Module(text=text_of(root / path), lines=own) for path, own in lines[test].items()}
        passed = test in seconds and not any(name.startswith(f"{test}::") for name in failed)
        yield test, TestFile(text=text_of(root / test), passed=passed, seconds=seconds[test], modules=known)


def _lines(root: Path, parts: Iterable[Path], modules: set[str]) -> dict[str, dict[str, Lines]]:
    """Return the lines by file of tests, module and function of a test."""
    from coverage import CoverageData

    found: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
    for part in parts:
        try:
            data = CoverageData(str(part))
            data.read()
        except Exception as error:  # noqa: BLE001 - of a process that was killed while it wrote
            print(f"{part.name}: {error}")
            continue
        for path in data.measured_files():
            module = os.path.relpath(path, root)
            for line, contexts in data.contexts_by_lineno(path).items() if module in modules else ():
                for context in filter(None, contexts):
                    test, _, name = context.partition("::")
                    found[test, module, name].add(line)
    lines: defaultdict[str, dict[str, Lines]] = defaultdict(dict)
    for (test, module, name), own in found.items():
        lines[test].setdefault(module, {})[name] = sorted(own)
    return lines
