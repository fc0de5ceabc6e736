"""Processes of Python whose clock is wrong: `time.time` and `time.time_ns` are ahead by the seconds in a file.

A process of its own, as a machine has a clock of its own; the file may change while the process runs, as clocks are set.
SQLite asks the operating system, so its clock stays right: it stands for the store's machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SHIM = """
import time, time as _time
_now, _now_ns = _time.time, _time.time_ns
def _ahead():
    with open({file!r}) as file:
        return float(file.read() or 0)
time.time = lambda: _now() + _ahead()
time.time_ns = lambda: _now_ns() + int(_ahead() * 1e9)
"""


class ShiftedClock:
    """A wrong clock, kept in a folder."""

    def __init__(self, folder: Path, ahead_s: float) -> None:
        self._file = folder / "ahead"
        self.set(ahead_s)
        (folder / "sitecustomize.py").write_text(_SHIM.format(file=str(self._file)))
        #: The search path of Python for the processes that have this clock.
        self.path = f"{folder}:{Path.cwd()}"

    def set(self, ahead_s: float) -> None:
        other = self._file.with_suffix(".new")
        other.write_text(str(ahead_s))
        other.replace(self._file)  # nobody reads half a number

    def run(self, program: str, *arguments: str) -> str:
        """Run a program in a process with this clock; return what it prints."""
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": self.path}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
