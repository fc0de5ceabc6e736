"""Does a fleet look up a name, or reach for another machine, while every built-in model answers?

    python -m benchmarks.quiet [--minutes 60] [--folder FOLDER] [--quick | --keep]

``strace`` (Linux; Debian: ``apt-get install strace``) reads each network call of all processes of a run: Valkey, a worker
with all built-in models, its device process, Flower, the gateway, and a client that asks each model for an answer every
minute. The run begins with a look-up of its own, which must be seen.

`outside` lists the calls that name another machine, port 53, or a service that looks names up; `open` those that listen
on other addresses than loopback. Both must be empty: else the exit code is 1. With `--folder`, each minute is noted
there, so that the same command goes on where it was interrupted, if the commit is the same. ``--quick`` serves only the
smallest model, for a single round.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import convention
from benchmarks.disasters.fleet import GatewayFleet
from producers import Client
from producers.wire.catalogue import Catalogue
from workers import settings
from workers.models.interface import sample_inputs

EVERY_S = 60.0
ANSWER_S = 300.0

#: A task for each built-in model, and the form of its input.
TASKS = {
    "sentiment": ("text", "text-classification"),
    "image-classification": ("vision", "image-classification"),
    "chat": ("chat", "text-generation"),
    "camera-motion": ("video", "video-classification"),
    "motion": ("motion", "time-series-classification"),
    "transcript": ("speech", "automatic-speech-recognition"),
    "objects": ("detector", "object-detection"),
    "holds": ("fused", "visual-question-answering"),
    "tongue": ("language", "language-identification"),
    "french": ("translation", "translation"),
    "digit": ("pictures", "text-to-image"),
    "styled": ("style", "style-transfer"),
}
QUICK = ("tongue",)
PARAMS: Mapping[str, Mapping[str, Any]] = {
    "chat": {"max_new_tokens": 8},
    "digit": {"num_inference_steps": 2},
}

_IPV4 = re.compile(r'inet_addr\("([^"]+)"\)')
_IPV6 = re.compile(r'inet_pton\(AF_INET6, "([^"]+)"')
_PORT = re.compile(r"(?:sin|sin6)_port=htons\((\d+)\)")
#: Sockets of services that look names up for others: nscd, sssd, systemd-resolved, avahi.
_RESOLVER = re.compile(r'connect\(.*sun_path="[^"]*(?:nscd|nss|resolve|avahi)[^"]*"}, \d+\) = 0')


@dataclass(slots=True)
class Calls:
    """The network calls of a run: how many there were, and by process those to outside and those open to others."""

    seen: int = 0
    processes: set[str] = field(default_factory=set)
    outside: Counter[tuple[str, str]] = field(default_factory=Counter)
    open: Counter[tuple[str, str]] = field(default_factory=Counter)

    def read(self, line: str) -> None:
        """Judge a line of strace, which begins with the process id."""
        process, _, call = line.partition(" ")
        self.seen += 1
        self.processes.add(process)
        found = self.outside if leaves(call) else self.open if is_open(call) else None
        if found is not None:
            found[process, f"{_command(process) or process}: {call.strip()[:200]}"] += 1


def leaves(call: str) -> bool:
    """Return whether a call names another machine, the port of name servers, or a service that looks names up."""
    if _RESOLVER.search(call) or "53" in _PORT.findall(call):
        return True
    return any(not (address.is_loopback or address.is_unspecified) for address in _addresses(call))


def is_open(call: str) -> bool:
    """Return whether a call takes connections from other machines."""
    ports = _PORT.findall(call)
    return call.lstrip().startswith("bind(") and ports != ["0"] and any(not a.is_loopback for a in _addresses(call))


def _addresses(call: str) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    for found in (*_IPV4.findall(call), *_IPV6.findall(call)):
        address = ipaddress.ip_address(found)
        yield getattr(address, "ipv4_mapped", None) or address


def _command(process: str) -> str:
    """Return the program of a process or thread, or nothing if it has ended."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    named = [Path(word).name for word in words[:5] if word not in ("-m", "")]
    return " ".join(word for word in named if not word.startswith("-"))


# --- the run that is traced -------------------------------------------------------------------------


def run(folder: Path, minutes: int, names: Iterable[str]) -> None:
    """Start a fleet, ask each task once a minute, and print a line for each round. Runs under strace."""
    own = subprocess.Popen(
        [sys.executable, "-c", "import socket; socket.getaddrinfo('a-look-up-of-the-test.invalid', 80)"],
        stderr=subprocess.DEVNULL,
    )
    print(json.dumps({"own": str(own.pid)}), flush=True)
    own.wait()
    file = folder / "fleet.toml"
    file.write_text(_fleet(names), encoding="utf-8")
    os.environ["ARGOSY_FLEET"] = str(file)
    with (
        GatewayFleet(settings.load(), folder / "home", flower=True) as fleet,
        Client(fleet.broker_url, fleet.store_url, catalogue=Catalogue.from_toml(file)) as client,
    ):
        fleet.start_gateway()
        for number in range(minutes):
            began = time.monotonic()
            print(json.dumps({"answered": _ask(client, fleet, names)}), flush=True)
            if number + 1 < minutes:
                time.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))


def _fleet(names: Iterable[str]) -> str:
    models = [TASKS[name][0] for name in names]
    tasks = [
        f'[models.{TASKS[name][0]}.tasks.{name}]\nkind = "{TASKS[name][1]}"'
        for name in names
        if name not in Catalogue.builtin().tasks
    ]
    return "\n".join([f"[worker]\nmodels = {json.dumps(models)}", *tasks])


def _ask(client: Client, fleet: GatewayFleet, names: Iterable[str]) -> list[str]:
    """Return the tasks and pages that answered."""
    handles = {name: client.submit(name, _input(client, name), params=PARAMS.get(name)) for name in names}
    for handle in handles.values():
        handle.result(timeout_s=ANSWER_S)
    pages = {
        "gateway": f"{fleet.gateway_url}/api/jobs",
        "page": fleet.gateway_url,
        "flower": fleet.flower_url,
    }
    for url in pages.values():
        _fetch(url)
    return [*handles, *pages]


def _input(client: Client, name: str) -> Any:
    task = client.catalogue.tasks[name]
    if task.kind.modality in ("text", "prompt"):
        return "seven" if name == "digit" else "A fleet answers on a Monday in Paris."
    if name == "motion":
        return [[0.1 * step % 1 for step in range(100)] for _ in range(6)]
    return sample_inputs.for_tasks({name: task}, 1)[0][0]


def _fetch(url: str) -> None:
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - an address of the fleet
                answer.read()
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


# --- the run that traces ----------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """The findings of one or more runs."""

    rounds: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    programs: dict[str, None] = field(default_factory=dict)
    calls_seen: int = 0
    own_look_ups_seen: int = 0
    outside: Counter[str] = field(default_factory=Counter)
    open: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"programs": list(self.programs)}

    def add(self, other: Mapping[str, Any]) -> None:
        self.rounds += other["rounds"]
        self.answered.update(other["answered"])
        self.programs.update(dict.fromkeys(other["programs"]))
        self.calls_seen += other["calls_seen"]
        self.own_look_ups_seen += other["own_look_ups_seen"]
        self.outside.update(other["outside"])
        self.open.update(other["open"])


def trace(folder: Path, minutes: int, names: Iterable[str], note: Callable[[Mapping[str, Any]], object]) -> None:
    """Run under strace, and pass on the findings of each round."""
    calls, before, own = Calls(), Calls(), ""
    reading, writing = os.pipe()
    inner = [sys.executable, "-m", "benchmarks.quiet", "--inner", str(folder), "--minutes", str(minutes)]
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=network", "-e", "signal=none"]
    process = subprocess.Popen(
        [*command, "-o", f"/dev/fd/{writing}", *inner, "--tasks", ",".join(names)],
        pass_fds=[writing],
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading, calls))
    reader.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said = json.loads(line)
            own = said.get("own", own)
            if "answered" in said:
                before = _note_round(note, calls, before, own, said["answered"])
                convention.progress(f"{len(said['answered'])} answered, {calls.seen:,} calls seen")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
        reader.join()
    _note_round(note, calls, before, own, [])
    if process.returncode:
        raise SystemExit(f"the traced run ended with {process.returncode}")


def _note_round(
    note: Callable[[Mapping[str, Any]], object], calls: Calls, before: Calls, own: str, answered: list[str]
) -> Calls:
    """Pass on the calls since `before`, and return the calls so far."""
    now = Calls(calls.seen, calls.processes.copy(), calls.outside.copy(), calls.open.copy())
    outside, opened = now.outside - before.outside, now.open - before.open
    note(
        {
            "rounds": bool(answered),
            "answered": answered,
            "programs": sorted({_command(process) for process in now.processes} - {""}),
            "calls_seen": now.seen - before.seen,
            "own_look_ups_seen": sum(count for (process, _), count in outside.items() if process == own),
            "outside": {call: count for (process, call), count in outside.items() if process != own},
            "open": {call: count for (_, call), count in opened.items()},
        }
    )
    return now


def _read(reading: int, calls: Calls) -> None:
    with open(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            calls.read(line)


def main() -> int:
    parser = convention.parser(__doc__)
    parser.add_argument("--minutes", type=int, default=60, help="rounds, one a minute (default: 60)")
    parser.add_argument("--folder", type=Path, help="notes each round, so that the same command goes on from there")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tasks", default=",".join(TASKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = QUICK if options.quick else tuple(options.tasks.split(","))
    if options.inner:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run(options.inner, options.minutes, names)
        return 0
    if problem := _untraceable():
        convention.report("quiet", {"skipped": problem})
        return 0 if options.quick else 1
    found, noted = Found(), _notes(options.folder)
    for line in noted.read_text("utf-8").splitlines() if noted and noted.exists() else ():
        found.add(json.loads(line))

    def note(one: Mapping[str, Any]) -> None:
        found.add(one)
        if noted:
            with noted.open("a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")

    minutes = 1 if options.quick else options.minutes - found.rounds
    if minutes > 0:
        with tempfile.TemporaryDirectory(prefix="argosy-quiet-") as folder:
            trace(Path(folder), minutes, names, note)
    assert found.own_look_ups_seen, "the run's own look-up was not seen: strace sees nothing here"
    convention.report("quiet", found.figures(), keep=options.keep)
    return 1 if found.outside or found.open else 0


def _untraceable() -> str:
    """Return the reason why strace cannot read the calls of a process here, or nothing."""
    if shutil.which("strace") is None:
        return "no strace here (Debian: apt-get install strace)"
    tried = subprocess.run(["strace", "-f", "--seccomp-bpf", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[-200:]}"


def _notes(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{convention.versions()['commit']}.jsonl"


if __name__ == "__main__":
    sys.exit(main())
