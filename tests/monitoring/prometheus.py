"""Prometheus and a gateway to scrape, each a process on a free port; and what the dashboards ask."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from tests.conftest import free_port
from tests.end_to_end.processes import until

FOLDER = Path(__file__).parents[2] / "docker" / "monitoring"


def queries() -> list[str]:
    """Return every query of the dashboards."""
    return [
        target["expr"]
        for board in sorted((FOLDER / "dashboards").glob("*.json"))
        for panel in json.loads(board.read_text("utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, str]]:
    """Run `argosy gateway`; give the addresses of its main port and of the port beside."""
    main, beside = free_port(), free_port()
    command = [sys.executable, "-m", "producers.commands.main", "gateway", "--no-auth", "--port", str(main)]
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen([*command, "--health-port", str(beside)], stdout=log, stderr=log)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{beside}/readyz"), 300)
        yield f"http://127.0.0.1:{main}", f"http://127.0.0.1:{beside}"
    finally:
        process.terminate()
        assert process.wait(60) == 0


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Run Prometheus with the configuration of the profile, but every second and for this target."""
    text = (FOLDER / "prometheus.yml").read_text().replace("gateway:8081", target.removeprefix("http://"))
    text = text.replace("15s", "1s").replace("/etc/prometheus/", f"{FOLDER}/")
    (folder / "prometheus.yml").write_text(text)
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/-/ready"), 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, query: str) -> list[float]:
    """Return the numbers that a query finds; what is not a number counts as not found."""
    answer = httpx.get(f"{url}/api/v1/query?query={urllib.parse.quote(query)}", timeout=30).json()
    assert answer["status"] == "success", (query, answer)
    found = [float(one["value"][1]) for one in answer["data"]["result"]]
    return [number for number in found if not math.isnan(number)]
