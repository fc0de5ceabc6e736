"""Draw docs/plots/NAME.svg for each kept result that has a picture: ``python -m benchmarks.plots [RESULTS
[PLOTS]]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.plots.drawing import draw_all

ROOT = Path(__file__).parents[2]


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    results, plots = (*folders, *(ROOT / "benchmarks" / "results", ROOT / "docs" / "plots")[len(folders) :])
    for path in draw_all(results, plots):
        print(path)


if __name__ == "__main__":
    main()
