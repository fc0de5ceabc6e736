"""A site on one core: `argosy edge` as a process in the link's namespace, with its memory and the time of its start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.sites.tunnel import TunnelLink

#: Seconds between looks at the memory, and the most for a start.
LOOK_EVERY_S, START_S = 0.5, 900.0

_CPUSET = Path("/sys/fs/cgroup/cpuset")


class OneCore:
    """The core of a site: a cgroup of cpuset (version 1), or an affinity where that cannot be made.

    All other processes of the benchmark are kept off it, if there are several cores.
    """

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self._core, others = cores[-1], cores[:-1] or cores
        self._group = _CPUSET / f"argosy-{os.getpid()}"
        with suppress(OSError):
            self._group.mkdir()
            (self._group / "cpuset.cpus").write_text(str(self._core), encoding="ascii")
            (self._group / "cpuset.mems").write_text("0", encoding="ascii")
        self.kind = "cgroup" if (self._group / "cgroup.procs").is_file() else "affinity"
        os.sched_setaffinity(0, others)

    def enter(self) -> None:
        """Keep the calling process, and all that it starts, on the core."""
        if self.kind == "cgroup":
            (self._group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        os.sched_setaffinity(0, [self._core])

    def close(self) -> None:
        """Remove the cgroup, which must be empty."""
        with suppress(OSError):
            self._group.rmdir()


class SiteProcess:
    """`argosy edge`, from `start` to `stop`. `start_s` are the seconds until programs find it, `memory_mib` is its peak
    (PSS of all its processes), and `memory_by_process` what each had then.
    """

    def __init__(self, file: Path, home: Path, link: TunnelLink, core: OneCore) -> None:
        self._file, self._home, self._link, self._core = file, home, link, core
        own = {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")}
        self.environment = {**own, "ARGOSY_HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._look, name="memory of the site")
        self.start_s, self.memory_mib = 0.0, 0
        self.memory_by_process: dict[str, int] = {}

    @property
    def store_url(self) -> str:
        return str(json.loads((self._home / "fleet.json").read_bytes())["store_url"])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._watch.join()
        assert self._process
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def start(self) -> None:
        """Start it and wait until programs find it. Raises RuntimeError with the log's end if it ends instead."""
        began = time.monotonic()
        log = self._file.with_suffix(".log")
        command = [sys.executable, "-m", "producers.commands.main", "edge", "--config", str(self._file)]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._link.command(*command),
                env=self.environment,
                stdout=out,
                stderr=out,
                preexec_fn=self._core.enter,  # noqa: PLW1509 - it takes no lock
            )
        while not self._announced(self._process.pid):
            if self._process.poll() is not None or time.monotonic() - began > START_S:
                raise RuntimeError(f"the site did not start: {log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.05)
        self.start_s = self.start_s or round(time.monotonic() - began, 2)

    def kill(self) -> None:
        """Kill all of it at once, as a power cut does."""
        family = self._family()
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        assert self._process
        self._process.wait()
        psutil.wait_procs(family, timeout=30)

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program of the site: in its namespace, on the other cores."""
        command = self._link.command(sys.executable, *words)
        return subprocess.run(command, env=self.environment, check=True, text=True, **options)

    def _announced(self, pid: int) -> bool:
        file = self._home / "fleet.json"  # a killed site leaves it
        with suppress(OSError, ValueError):
            return bool(json.loads(file.read_bytes())["pid"] == pid)
        return False

    def _family(self) -> list[psutil.Process]:
        assert self._process
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self._process.pid)
            return [whole, *whole.children(recursive=True)]
        return []

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            found = Counter[str]()
            for one in self._family():
                with suppress(psutil.Error):
                    found[_role(one)] += round(one.memory_full_info().pss / 2**20)
            if found.total() > self.memory_mib:
                self.memory_mib, self.memory_by_process = found.total(), dict(found)


def _role(process: psutil.Process) -> str:
    """Return the name of a process of a site: its module, or its program."""
    if (name := process.name()).startswith("device"):
        return "device"
    words = process.cmdline()
    module = words[words.index("-m") + 1].rpartition(".")[2] if "-m" in words else name
    return "worker" if "worker" in words else "edge" if "edge" in words else module


def until(look: Callable[[], object], timeout_s: float) -> bool:
    """Return whether `look` is true within the time."""
    ends_at = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.1)
    return True
