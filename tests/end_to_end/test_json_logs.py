"""The logs of a real fleet as JSON: every line of each service, with ids, and without a word of an input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from producers import Client
from tests.conftest import free_port
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

TEXT = "zebra-crossing-at-noon"


def test_every_line_is_an_object_without_inputs(tmp_path: Path) -> None:
    """Also of device processes and of errors; a gateway is told by its environment."""
    with fleet_in(tmp_path, f'[log]\nformat = "json"\n{SCRIPTED}'), Client() as client:
        texts = [f"{word} {TEXT}" for word in ("fine", "bug", "raise", "die", "refuse", "short")]
        job = client.submit_many("echo", texts)
        assert job.wait(timeout_s=120).finished
        port, log = free_port(), tmp_path / "gateway.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "producers.commands.main", "gateway", "--no-auth", "--port", str(port)]
            gateway = subprocess.Popen(command, stderr=out, env=os.environ | {"ARGOSY_LOG_FORMAT": "json"})
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: _answers(address), 60)
            answer = httpx.post(f"{address}/api/items", json={"task": "echo", "input": f"bug {TEXT}", "wait_s": 60})
            assert answer.json()["results"][0]["state"] == "failed"
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway.wait(30)
        logs = [log, *(tmp_path / "home" / "logs").glob("cpu*.log"), *(tmp_path / "home" / "logs").glob("worker*.log")]
        assert len(logs) > 1, sorted((tmp_path / "home" / "logs").iterdir())

    lines = [json.loads(line) for file in logs for line in file.read_text().splitlines()]
    assert lines
    assert TEXT not in "".join(file.read_text() for file in logs)
    about = [line for line in lines if line.get("job") == job.id]
    assert any("preparation failed" in line["message"] and line["envelope"] for line in about)
    assert any("restarting it" in line["message"] and line["batch"] for line in lines)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False
