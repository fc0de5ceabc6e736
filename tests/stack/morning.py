"""The processes of a morning: `argosy up` in a terminal, an interactive Python, the commands of an operator."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

Environment = Mapping[str, str]

#: A process that says nothing for so long hangs.
PATIENCE_S = 180.0

ARGOSY = (sys.executable, "-m", "producers.commands.main")


class Lines:
    """The lines of a process, as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self.said: list[str] = []
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(stream,))
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.said.append(line)
                self._new.put(line)
        self._new.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that has the pattern."""
        while (line := self._new.get(timeout=PATIENCE_S)) is not None:
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}:\n{self}")

    def join(self) -> None:
        self._thread.join()

    def __str__(self) -> str:
        return "".join(self.said)


def spawn(command: Sequence[str], environment: Environment, **options: Any) -> tuple[subprocess.Popen[str], Lines]:
    """Start a process in a session of its own, which hears no Ctrl-C of the tests."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )
    assert process.stdout is not None
    return process, Lines(process.stdout)


class Terminal:
    """`argosy up`, started; Ctrl-C reaches its process group, as from a terminal."""

    def __init__(self, environment: Environment) -> None:
        self.process, self.lines = spawn([*ARGOSY, "up"], environment)
        self.lines.until("^logs ")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def stopped(self) -> str:
        """Wait for the end, and return all that was said."""
        code = self.process.wait(PATIENCE_S)
        self.lines.join()
        assert code == 0, str(self.lines)
        return str(self.lines)


class Console:
    """An interactive Python with top-level `await`, as a notebook has."""

    def __init__(self, environment: Environment) -> None:
        self._process, self._lines = spawn([sys.executable, "-u", "-m", "asyncio"], environment, stdin=subprocess.PIPE)

    def run(self, cell: str) -> None:
        """Run a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{cell}\n")
        self._process.stdin.flush()

    def value(self, expression: str) -> Any:
        """Return the value of an expression, as JSON has it."""
        self.run(f"import json; print('<' * 3, json.dumps({expression}), '>' * 3)")
        self.run("print('<' * 3, '>' * 3)")  # also if the line before raised
        found = self._lines.until("<<< (.*)>>>")[1]
        assert found, str(self._lines)
        self._lines.until("<<< >>>")
        return json.loads(found)

    def close(self) -> str:
        """End it as Ctrl-D does, and return all that was said."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._lines.join()
        return str(self._lines)


def command(environment: Environment, *arguments: str) -> tuple[int, str]:
    """Run a command of `argosy`; return its exit code and its output."""
    done = subprocess.run([*ARGOSY, *arguments], env=dict(environment), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def missing(environment: Environment) -> dict[str, str]:
    """Return the problems that `argosy doctor` finds."""
    code, said = command(environment, "doctor")
    found = dict(re.findall(r"^missing +(.+?)  +(.+)$", said, re.MULTILINE))
    assert code == bool(found), said
    return found
