"""Documents as their readers use them: fenced blocks, in order, run as they stand in a folder of their own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import free_port
from tests.end_to_end.processes import until

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])

_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w.]+\.(?:py|toml))\n")
_EXPORT = re.compile(r"^export (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; `file` is the name in its first line, if that is a comment with nothing but a file's name."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        named = _FILE.match(self.text)
        return named.group(1) if named else None


def blocks(document: Path) -> Iterator[Block]:
    for language, text in _FENCED.findall(document.read_text(encoding="utf-8")):
        yield Block(language, text)


class Reader:
    """Somebody who does what a document says, from top to bottom, in `folder` with a local fleet of their own.

    Or, where `environment` names one, with a fleet that runs already.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.said: list[str] = []
        self._fleet: subprocess.Popen[bytes] | None = None
        self._gateway: subprocess.Popen[bytes] | None = None
        self._gateway_port = free_port()
        unwanted = ("ARGOSY_FLEET", "ARGOSY_BROKER_URL", "ARGOSY_STORE_URL")
        self._environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        self._environment |= {
            "ARGOSY_HOME": str(self.home),
            "ARGOSY_GATEWAY_PORT": str(self._gateway_port),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **(environment or {}),
        }

    def follow(self, document: Path) -> None:
        """Write the blocks that are files, run the others; a block that ends with ``argosy up`` or ``argosy gateway``
        leaves the fleet or the gateway running, the latter on a port that nobody else here has.
        """
        for block in blocks(document):
            text = block.text.replace("127.0.0.1:8080", f"127.0.0.1:{self._gateway_port}")
            if block.file:
                (self.folder / block.file).write_text(text, encoding="utf-8")
            elif block.language == "python":
                self._run([sys.executable, "-W", "error", "-c", text])
            elif block.language == "sh":
                self._shell(text)

    def stop(self) -> None:
        """Stop gateway and fleet as Ctrl-C would. They must end well and leave nothing behind."""
        if self._gateway is not None:
            self._gateway.send_signal(signal.SIGINT)
            assert self._gateway.wait(timeout=60) == 0
        if self._fleet is None:
            return
        processes = psutil.Process(self._fleet.pid).children(recursive=True)
        self._fleet.send_signal(signal.SIGINT)
        assert self._fleet.wait(timeout=60) == 0
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive, f"left behind: {alive}"

    def _shell(self, text: str) -> None:
        before, serves, after = text.partition("\nargosy gateway\n")
        if serves:
            assert not after, "nothing can follow `argosy gateway` in the same terminal"
            self._run(["bash", "-euo", "pipefail", "-c", before])
            self._start_gateway()
            return
        before, up, after = text.partition("argosy up")
        if not up:
            self._run(["bash", "-euo", "pipefail", "-c", text])
            return
        assert "\n" not in after.strip(), "nothing can follow `argosy up` in the same terminal"
        self._run(["bash", "-euo", "pipefail", "-c", before])
        self._environment |= self._exported(before)
        self._start_fleet()

    def _exported(self, text: str) -> Mapping[str, str]:
        """What the reader's terminal, and those opened for the next blocks, have in their environment."""
        exported: dict[str, str] = {}
        for line in _EXPORT.findall(text):
            for word in shlex.split(line.replace("$PWD", str(self.folder))):
                name, _, value = word.partition("=")
                exported[name] = value
        return exported

    def _run(self, command: list[str]) -> None:
        ran = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout}\n{ran.stderr}"
        self.said.append(ran.stdout)

    def _start_gateway(self) -> None:
        with (self.folder / "gateway.log").open("wb") as log:
            gateway = subprocess.Popen(
                ["argosy", "gateway"], cwd=self.folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._gateway = gateway
        until(lambda: self._gateway_is_ready() or gateway.poll() is not None)
        assert gateway.poll() is None, (self.folder / "gateway.log").read_text(encoding="utf-8")

    def _gateway_is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._gateway_port}/readyz") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _start_fleet(self) -> None:
        with (self.folder / "up.log").open("wb") as log:
            fleet = subprocess.Popen(
                ["argosy", "up"], cwd=self.folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._fleet = fleet
        until(lambda: (self.home / "fleet.json").exists() or fleet.poll() is not None, timeout_s=300)
        assert fleet.poll() is None, (self.folder / "up.log").read_text(encoding="utf-8")
