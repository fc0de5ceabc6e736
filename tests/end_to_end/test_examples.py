"""The examples of pipelines, of Celery and of FastAPI applications do what they say, against a real fleet."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producers import ItemExpired, ItemFailed
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.gateway_server import served
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

ROOT = Path(__file__).parents[2]
LONG = "a text that is long enough to travel by reference, " * 10


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose large inputs travel by reference."""
    folder = tmp_path_factory.mktemp("examples")
    blobs = f'[blobs]\nurl = "file://{folder}/blobs"\ninline_bytes = 200\n'
    with fleet_in(folder, SCRIPTED + blobs) as fleet:
        yield fleet


def run(example: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.{example}", *map(str, arguments)]
    own = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False, timeout=120)


def test_the_nightly_pipeline_goes_from_parquet_to_parquet(fleet: LocalFleet, tmp_path: Path) -> None:
    """Every row comes back with its result or its error; the next run of the same night computes nothing."""
    texts = [*(f"text {number}" for number in range(300)), LONG, "", "refuse this"]
    rows = pa.table({"id": [f"row {n}" for n in range(len(texts))], "text": texts, "stars": range(len(texts))})
    pq.write_table(rows, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    told = (tmp_path / "in.parquet", out, "--task", "echo", "--id-column", "id")
    first, second = run("nightly_pipeline", *told), run("nightly_pipeline", *told)
    said = "303 rows, 1 of them bad; 301 of 302 results succeeded\n"
    assert (first.stdout, second.stdout) == (said, said), first.stderr + second.stderr
    assert first.returncode == 1, "one of them failed"
    joined = pq.read_table(out)
    assert joined.select(rows.column_names).equals(rows)
    found = joined.to_pylist()
    assert [json.loads(row["echo"])["crc"] for row in found[:301]] == [
        zlib.crc32(text.encode()) for text in texts[:301]
    ]
    assert "is empty" in found[301]["error"]
    assert found[302]["error"] == "echo: InvalidInput: input: is refused by the script"
    (bad,) = (json.loads(line) for line in (tmp_path / "out.parquet.errors.jsonl").read_text().splitlines())
    assert (bad["row"], bad["id"]) == (302, "row 301")
    kept = [path for path in (fleet.home.parent / "blobs").rglob("*") if path.is_file()]
    assert len(kept) == 1, "the long text, once"


@pytest.mark.usefixtures("fleet")
def test_the_celery_application_asks_the_fleet_by_name() -> None:
    """One task and a group, without a module of ours in the program."""
    ran = run("celery_application", "one text", "another", MODEL="scripted", TASK="echo")
    assert ran.returncode == 0, ran.stderr
    answers = [{"crc": zlib.crc32(text.encode()), "task": "echo"} for text in ("one text", "another")]
    assert ran.stdout.splitlines() == [f"one: {answers[0]}", f"one text: {answers[0]}", f"another: {answers[1]}"]


@pytest.mark.usefixtures("fleet")
def test_the_fastapi_backend_answers_while_its_callers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text at once, many later, and the fleet's refusals as those of HTTP."""
    backend = importlib.import_module("examples.fastapi_backend")
    monkeypatch.setattr(backend, "TASK", "echo")  # another test may have imported it before
    with served(backend.app) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/rate", json={"text": "one"}).json() == {
            "answer": {"crc": zlib.crc32(b"one"), "task": "echo"}
        }
        assert client.post("/rate", json={"text": " "}).status_code == 422
        assert client.post("/rate", json={"text": "raise"}).status_code == 502
        job = client.post("/nightly", json={"texts": ["one", "two"]}).json()["job"]
        rated = until(lambda: found if (found := client.get(f"/nightly/{job}").json())["answers"] else None)
        assert [answer["crc"] for answer in rated["answers"]] == [zlib.crc32(b"one"), zlib.crc32(b"two")]
        assert client.get("/nightly/nothing").status_code == 404


def test_the_fastapi_backend_without_a_fleet_says_when_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error of the fleet is a fault of the application."""
    for name in ("ARGOSY_BROKER_URL", "ARGOSY_STORE_URL", "ARGOSY_FLEET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path))
    backend = importlib.import_module("examples.fastapi_backend")
    monkeypatch.setattr(backend, "TASK", "sentiment")
    with served(backend.app) as url, httpx.Client(base_url=url, timeout=60) as client:
        for answer in (client.post("/rate", json={"text": "one"}), client.get("/nightly/any")):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
            assert "argosy up" in answer.json()["detail"]
    for error, status in ((ItemExpired("late"), 504), (ItemFailed("echo", "ModelError", "broke"), 502)):
        assert asyncio.run(backend.refused(None, error)).status_code == status


@pytest.mark.training
def test_two_tasks_share_layers_and_a_pass(tmp_path: Path) -> None:
    """Trained from Parquet by one command, apart and together, and served in one pass."""
    ran = run("two_tasks", "--folder", tmp_path / "two", "--rows", "640", "--epochs", "3")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 3
    told = [line.partition(":")[0] for line in lines[3:7]]
    assert told == [f"{task}, {how} layers" for task in ("class", "flags") for how in ("shared", "separate")]
    assert len(lines) == 10
    assert all(line.startswith("served in one pass: class ") for line in lines[7:])


@pytest.mark.edge
@pytest.mark.timeout(300)
def test_a_site_and_two_nodes_answer_over_the_handbook_although_one_is_killed(
    tmp_path: Path, pulled_models: object
) -> None:
    ran = run("handbook_at_the_edge", "--folder", tmp_path / "sites")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"killed node \d+ of the centre\n", ran.stdout)
    answers = re.findall(r"^ *\d+ (.*) by the (.*)$", ran.stdout, re.MULTILINE)
    assert ("handbook", "centre, which knows no passage") in answers
    assert {("topic-of-question", "site"), ("topic-of-question", "centre"), ("handbook", "centre")} < set(answers)
    assert "1152 of 1152 answers are those of the undisturbed run\n" in ran.stdout
    assert ran.stdout.endswith("each is stored once at the site, and at the centre\n")
