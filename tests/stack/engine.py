"""A Docker engine: the one that answers already, or one started here and stopped again.

Nothing of it stays but the packages it is made of and the bridge and firewall chains that Docker always leaves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Debian's packages of all that is needed: the engine, compose, and what makes a base image without a registry.
PACKAGES = ("docker.io", "docker-compose", "debootstrap", "iptables")


class CannotRun(Exception):
    """Why no engine can be had on this machine, and what to do about it."""


@dataclass(frozen=True)
class Engine:
    """A running engine. `own` says that it was started here, so that its images and names are ours to choose."""

    environment: Mapping[str, str]
    own: bool
    folder: Path

    def run(self, *command: str, check: bool = True, extra: Mapping[str, str] | None = None) -> str:
        """Run a command that talks to this engine and return its output; `extra` is added to its environment."""
        done = subprocess.run(
            command,
            env={**self.environment, **(extra or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{(done.stdout or '')[-4000:]}")
        return done.stdout or ""

    def succeeds(self, *command: str) -> bool:
        return _quiet(command, self.environment)

    def compose_command(self) -> tuple[str, ...]:
        """The compose there is: the plugin, else the older program of its own."""
        return ("docker", "compose") if self.succeeds("docker", "compose", "version") else ("docker-compose",)


@contextmanager
def engine(say: Callable[[str], None]) -> Iterator[Engine]:
    """Yield an engine. Raises CannotRun if none answers and none can be started."""
    folder = Path(tempfile.mkdtemp(prefix="argosy-docker-", dir="/var/tmp"))
    try:
        if _quiet(("docker", "info"), os.environ):
            say("using the Docker engine that is running")
            yield Engine(dict(os.environ), own=False, folder=folder)
            return
        _install(say)
        with _started(folder, say) as started:
            yield started
    finally:
        shutil.rmtree(folder)


def _install(say: Callable[[str], None]) -> None:
    needed = ("dockerd", "docker-compose", "debootstrap")
    if all(map(shutil.which, needed)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotRun(f"no Docker engine answers, and {', '.join(needed)} need root and Debian's apt to be installed")
    say(f"installing {', '.join(PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ("apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES)
    if not _quiet(install, environment):
        _quiet(("apt-get", "update"), environment)  # the lists may be missing or old
        if not _quiet(install, environment):
            raise CannotRun(f"`{' '.join(install)}` fails; run it by hand to see why")


@contextmanager
def _started(folder: Path, say: Callable[[str], None]) -> Iterator[Engine]:
    """Start an engine whose every file is under `folder`, and stop it by its own process."""
    socket = folder / "docker.sock"
    # the lowered limits: where the default ones exceed what this process may grant, every container start fails
    command = (
        *("dockerd", "--host", f"unix://{socket}", "--pidfile", str(folder / "pid")),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--default-ulimit", "nproc=4096:4096", "--default-ulimit", "nofile=4096:4096"),
    )
    log = folder / "dockerd.log"
    say(f"starting a Docker engine under {folder}")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    started = Engine({**os.environ, "DOCKER_HOST": f"unix://{socket}"}, own=True, folder=folder)
    try:
        _wait_until_it_answers(process, started, log)
        yield started
    finally:
        process.terminate()  # it stops its containers and its containerd first
        process.wait(timeout=60)
        say("the Docker engine is stopped")


def _wait_until_it_answers(process: subprocess.Popen[bytes], started: Engine, log: Path) -> None:
    for _ in range(120):
        if started.succeeds("docker", "info"):
            return
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        raise CannotRun(f"dockerd ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
    raise CannotRun(f"dockerd does not answer after a minute:\n{log.read_text()[-2000:]}")


def _quiet(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0
