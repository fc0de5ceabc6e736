"""How long the client takes to import, and the command to answer `--help`, in fresh interpreters.

    python -m benchmarks.import_time [--quick | --keep]

Each figure is the median of many runs, after one that warms the file cache. Imports are timed inside the new
interpreter, so its own start is not counted; the command is timed from outside, start included, as its user feels it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks import convention

TIMED = "import time; s = time.perf_counter(); {statement}; print(1000 * (time.perf_counter() - s))"
STATEMENTS = {"import_producers_ms": "import producers", "import_client_ms": "from producers import Client"}
HELP = [sys.executable, "-m", "producers.commands.main", "--help"]


def main() -> None:
    options = convention.options(__doc__)
    runs = 2 if options.quick else 15
    figures: dict[str, float] = {"runs": runs}
    for name, statement in STATEMENTS.items():
        convention.progress(f"{statement}, {runs} times")
        figures[name] = _median(partial(_import_ms, statement), runs)
    convention.progress(f"argosy --help, {runs} times")
    figures["argosy_help_ms"] = _median(_help_ms, runs)
    convention.report("import_time", figures, keep=options.keep)


def _median(measure: Callable[[], float], runs: int) -> float:
    measure()
    return round(statistics.median(measure() for _ in range(runs)), 1)


def _import_ms(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _help_ms() -> float:
    started = time.perf_counter()
    subprocess.run(HELP, capture_output=True, check=True)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
