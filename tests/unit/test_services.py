"""What a fleet starts again, and when."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workers.fleet.services import HEALTHY_S, Restarts, ending, last_words, spawn


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def end_and_wait(restarts: Restarts, clock: Clock, *, ran_s: float) -> float:
    """Start, end after `ran_s`, and return how long it then takes until the next start is due."""
    restarts.started()
    clock.now += ran_s
    ended = clock.now
    while not restarts.due("it", lambda: "nothing"):
        clock.now += 0.5
    return clock.now - ended


def test_what_keeps_ending_waits_longer_each_time():
    """A worker that cannot live must not keep the machine busy with its starts."""
    clock = Clock()
    restarts = Restarts(clock=clock)
    assert [end_and_wait(restarts, clock, ran_s=0.5) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_what_ran_for_a_while_is_forgiven():
    """Deaths spread over days are no crash loop: each is mended at once."""
    clock = Clock()
    restarts = Restarts(clock=clock)
    for _ in range(5):
        end_and_wait(restarts, clock, ran_s=0.5)
    assert [end_and_wait(restarts, clock, ran_s=HEALTHY_S) for _ in range(3)] == [1, 1, 1]


def test_the_last_words_of_a_long_log(tmp_path: Path):
    """The reason of an end stands at the log's end, before empty lines, and the log may be longer than memory likes."""
    log = tmp_path / "log"
    log.write_bytes(b"an early line\n" * 10_000 + b"out of memory\n\n  \n")
    assert last_words(log) == "out of memory"
    log.write_bytes(b"")
    assert last_words(log) == "its log is empty"


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("print('a')\nprint('b')\nprint('c')\nexit('no room')", "exit code 1; the end of its log: b | c | no room"),
        ("import os\nos.kill(os.getpid(), 11)", "signal SIGSEGV; the end of its log: its log is empty"),
        ("import os\nos.kill(os.getpid(), 9)", "signal SIGKILL, which the kernel sends too if memory runs out; "),
    ],
)
def test_an_end_is_described(tmp_path: Path, script: str, how: str) -> None:
    """A kill for want of memory looks like nothing at all in the log: the signal must be said."""
    process = spawn([sys.executable, "-u", "-c", script], tmp_path / "log")
    process.wait()
    assert ending(process, tmp_path / "log").startswith(how)
