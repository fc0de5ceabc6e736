"""A model by its Hugging Face id, pulled by the hub's own client from a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One repository with one commit; `missing` names a file that cannot be had for now. It may refuse all requests."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {
            "config.json": b"{}",
            "onnx/model.onnx": b"network",
            "onnx/model_quantized.onnx": b"another",
            "model.safetensors": b"weights",
            "source.spm": b"vocabulary",
            "model.bin": b"pickle",
            "model.py": b"code",
        }
        self.missing = ""
        self.refuses = False
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if self.server.refuses:
            self._answer(401, b"")
        elif self.path.startswith("/api/models/own/model/revision/"):
            siblings = [{"rfilename": file} for file in self.server.files]
            self._answer(200, json.dumps({"id": "own/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif self.path.startswith("/api/models/own/model/tree/"):
            tree = [
                {"type": "file", "path": file, "size": len(body), "oid": sha1(body).hexdigest()}
                for file, body in self.server.files.items()
            ]
            self._answer(200, json.dumps(tree).encode())
        elif self.path.startswith("/own/model/resolve/") and name != self.server.missing:
            self._answer(200, self.server.files[name])
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(hub: Hub, cache: Path, call: str, *, login: str = "", **further: str) -> str:
    """Run a call on the source in a process of its own: the hub's client reads its address when it is imported."""
    code = f"""
from pathlib import Path
from workers.models.sources import download, model_source
cache = Path({str(cache)!r})
source = model_source.parse({{"hub": "own/model", "revision": "v1"}} | {further!r}, where="models.x.source")
try:
    print({call})
except download.PullFailed as error:
    print("PullFailed", error)
"""
    environment = {
        "HF_ENDPOINT": f"http://{login}127.0.0.1:{hub.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    environment |= {"HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_weights_and_text_are_pulled_code_and_pickles_are_not(hub: Hub, tmp_path: Path) -> None:
    """Both would run on the worker; and the revision stored with results is the commit, whatever name was asked for."""
    assert ask(hub, tmp_path, "model_source.pull(source, cache).revision") == f"own/model@{COMMIT}"
    folder = Path(ask(hub, tmp_path, "model_source.locate(source, cache).folder"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "source.spm"]


@pytest.mark.long
def test_an_onnx_file_is_pulled_when_it_is_named(hub: Hub, tmp_path: Path) -> None:
    """One of many, beside the weights that it is compared with; a file that the repository lacks is named."""
    assert COMMIT in ask(hub, tmp_path, "model_source.pull(source, cache)")
    assert ask(hub, tmp_path, "model_source.locate(source, cache)", onnx="onnx/model.onnx") == "None"
    call = "model_source.pull(source, cache).folder"
    folder = Path(ask(hub, tmp_path, call, onnx="onnx/model.onnx"))
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert there == ["config.json", "model.safetensors", "onnx/model.onnx", "source.spm"]
    refused = ask(hub, tmp_path, call, onnx="onnx/model_fp16.onnx")
    assert "has no onnx/model_fp16.onnx; it has onnx/model.onnx, onnx/model_quantized.onnx" in refused


def test_a_refusal_does_not_show_the_password(hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    said = ask(hub, tmp_path, "model_source.pull(source, cache)", login="someone:secret@")
    assert "401" in said
    assert "secret" not in said


def test_the_hub_is_asked_once(hub: Hub, tmp_path: Path) -> None:
    """A worker starts without a network once the model is there."""
    ask(hub, tmp_path, "model_source.pull(source, cache)")
    hub.asked.clear()
    assert COMMIT in ask(hub, tmp_path, "model_source.pull(source, cache)")
    assert hub.asked == []


def test_half_a_model_is_not_a_model(hub: Hub, tmp_path: Path) -> None:
    """The hub's folder exists from its first file on; a pull that broke off there is taken up again."""
    hub.missing = "model.safetensors"
    assert ask(hub, tmp_path, "model_source.pull(source, cache)").startswith("PullFailed")
    assert ask(hub, tmp_path, "model_source.locate(source, cache)") == "None"
    hub.missing = ""
    assert COMMIT in ask(hub, tmp_path, "model_source.pull(source, cache).revision")
