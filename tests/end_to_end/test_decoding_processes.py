"""Pictures that would take minutes to decode, in a fleet: each fails alone, and everybody else goes on."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from PIL import Image

from producers import Client
from tests import media_bombs
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import children, fleet_in, until
from workers.fleet.local import LocalFleet
from workers.models.decoding.decoder_client import SLOW_RANK
from workers.models.pictures import pixels

FILES = """
[limits]
decode_s = {decode_s}
[models.files]
class = "tests.file_model:FileModel"
source = {{ path = "{tests}" }}
[models.files.tasks.see]
kind = "image-classification"
"""


def text(decode_s: float) -> str:
    return SCRIPTED.replace('models = ["scripted"]', 'models = ["scripted", "files"]') + FILES.format(
        decode_s=decode_s, tests=Path(__file__).parents[1]
    )


def worker(fleet: LocalFleet) -> psutil.Process:
    process = fleet.workers[0].process
    assert process is not None
    return psutil.Process(process.pid)


def decoders(fleet: LocalFleet) -> list[psutil.Process]:
    return children(worker(fleet).pid, "decoder_process")


def slow(fleet: LocalFleet) -> list[psutil.Process]:
    return [process for process in decoders(fleet) if process.is_running() and process.nice() == SLOW_RANK]


def pictures(count: int) -> list[bytes]:
    made = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (number, 0, 0)).save(file, "PNG")
        made.append(file.getvalue())
    return made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with fleet_in(tmp_path_factory.mktemp("decoding"), text(decode_s=3)) as fleet:
        yield fleet


@pytest.mark.long
def test_bombs_fail_alone_and_others_are_answered_before(fleet: LocalFleet, client: Client) -> None:
    """Bulk with bombs in every envelope: its pictures succeed, and interactive pictures and texts do not wait."""
    bomb, good = media_bombs.scans(), pictures(6)
    assert decoders(fleet)  # before the first picture
    job = client.submit_many("see", [bomb, *good, bomb], priority="bulk")
    until(lambda: slow(fleet))
    asked = [
        client.submit("see", good[1], priority=priority).result(timeout_s=60)
        for priority in ("interactive", "standard")
    ]
    answer = client.submit("echo", "a text", priority="bulk").result(timeout_s=60)
    assert not client.status(job.id).finished
    job.wait(timeout_s=120)
    rows = {row.seq: row for row in job.results()}
    expected = [str(int(pixels.decode(picture).sum())) for picture in good]
    assert [rows[seq].output[0]["label"] for seq in range(1, 7)] == expected
    assert [one[0]["label"] for one in asked] == [expected[1]] * 2
    assert answer["task"] == "echo"
    for seq in (0, 7):
        assert rows[seq].error["kind"] == "InputTooLarge"
        assert "takes longer than 3 s of a processor to decode" in rows[seq].error["message"]


def test_a_killed_decoding_process_costs_no_item(fleet: LocalFleet, client: Client) -> None:
    for process in decoders(fleet):
        process.kill()
    [picture] = pictures(1)
    assert client.submit("see", picture).result(timeout_s=60)[0]["label"] == str(int(pixels.decode(picture).sum()))


@pytest.mark.long
@pytest.mark.parametrize("code", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_while_a_bomb_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """By a stop after its grace, or at once: no decoding process is left, and a stop counts no attempt."""
    for name in ("ARGOSY_BROKER_URL", "ARGOSY_STORE_URL"):
        monkeypatch.delenv(name, raising=False)  # of the fleet that the other tests share
    with fleet_in(tmp_path, text(decode_s=600)) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        job = client.submit_many("see", [media_bombs.scans(10_000)], priority="bulk")
        until(lambda: slow(fleet))
        process, family = worker(fleet), decoders(fleet)
        os.kill(process.pid, code)
        _, alive = psutil.wait_procs([process, *family], timeout=60)
        assert not alive
        assert not client.status(job.id).finished
        if code == signal.SIGTERM:
            with closing(sqlite3.connect(fleet.home / "store.db")) as database:
                (attempts,) = database.execute("SELECT max(attempts) FROM envelopes").fetchone()
            assert attempts == 0
