"""Workers die again and again: of an item, which alone fails in the end, or of something else, which fails nobody."""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from producers import Client, Job
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

TIMEOUT_S = 120

#: Two attempts are enough to show that no death counts as an attempt.
MORTAL = SCRIPTED.replace("lease_s = 3.0", "lease_s = 1.0\nmax_attempts = 2")

#: Tasks whose texts form blocks.
MORTAL = MORTAL.replace("tests.scripted_model:ScriptedModel", "tests.block_model:BlockModel")
MORTAL += """
[models.scripted.tasks.say]
kind = "text-classification"
[models.scripted.tasks.place]
kind = "feature-extraction"
"""


@pytest.fixture(scope="module")
def mortal_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose worker is started again at once whenever it dies."""
    with fleet_in(tmp_path_factory.mktemp("mortal"), MORTAL) as fleet:
        fleet.workers[0].restarts.longest_wait_s = 0.1
        watching = threading.Thread(target=fleet.watch)
        watching.start()
        yield fleet
        fleet.request_stop()
        watching.join()


@pytest.fixture
def mortal_client(mortal_fleet: LocalFleet) -> Iterator[Client]:
    with Client(mortal_fleet.broker_url, mortal_fleet.store_url) as client:
        yield client


def failures(job: Job, texts: list[str]) -> dict[int, str]:
    """Return the failed items with their kinds of error; every other result must be the item's own."""
    rows = list(job.results())
    assert sorted(row.seq for row in rows) == list(range(len(texts)))
    failed = {row.seq: row.error["kind"] for row in rows if row.state == "failed"}
    right = {row.seq: row.output == {"crc": zlib.crc32(texts[row.seq].encode()), "task": "echo"} for row in rows}
    assert {seq for seq, fine in right.items() if not fine} == set(failed)
    return failed


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_item_that_kills_every_worker_fails_alone_and_can_be_replayed(
    mortal_fleet: LocalFleet, mortal_client: Client, tmp_path: Path
) -> None:
    """Its companions in the envelope, and whatever the worker held beside it, get their own results."""
    fault = tmp_path / "fault"
    fault.touch()
    texts = [f"item {n:04}" for n in range(640)]
    texts[100] = f"kill while {fault}"
    job = mortal_client.submit_many("echo", texts)
    lone = mortal_client.submit("echo", "harmless")

    assert job.wait(timeout_s=TIMEOUT_S).failed == 1
    assert failures(job, texts) == {100: "WorkerLost"}
    assert lone.result(timeout_s=TIMEOUT_S)["crc"] == zlib.crc32(b"harmless")

    fault.unlink()
    with Store(mortal_fleet.store_url) as store:
        assert store.dead_letters.newest() == []
        assert store.dead_letters.replay(error_kind="WorkerLost").results == 1
    job.wait(timeout_s=TIMEOUT_S)
    assert failures(job, texts) == {}


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_crash_loop_fails_nobody(mortal_fleet: LocalFleet, mortal_client: Client, tmp_path: Path) -> None:
    """A worker is killed as soon as it holds envelopes, more often than an envelope may be attempted."""
    gate = tmp_path / "gate"
    gate.touch()
    texts = [f"item {n:04}" for n in range(1280)]
    texts[100] = f"wait while {gate}"
    job = mortal_client.submit_many("echo", texts)
    with sqlite3.connect(mortal_fleet.home / "store.db") as database:
        held = "SELECT count(*) FROM envelopes WHERE leased_until > 0 AND worker LIKE ?"
        for _ in range(5):
            process = mortal_fleet.workers[0].process
            assert process is not None
            until(lambda pid=process.pid: database.execute(held, [f"%#{pid}-%"]).fetchone()[0])
            process.kill()
            until(lambda died=process: mortal_fleet.workers[0].process is not died)
    database.close()
    gate.unlink()
    job.wait(timeout_s=TIMEOUT_S)
    assert failures(job, texts) == {}


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_blocks_are_stored_once_though_their_worker_is_killed(
    mortal_fleet: LocalFleet, mortal_client: Client, tmp_path: Path
) -> None:
    """In the middle of the job, beside items of another task and an urgent one."""
    gate = tmp_path / "gate"
    gate.touch()
    mortal_client.submit_many("say", ["the client learns of the node"]).wait(timeout_s=TIMEOUT_S)
    texts = [f"item {n:04}" for n in range(2000)]
    texts[1500] = f"wait while {gate}"
    blocks = mortal_client.submit_many(("say", "place"), texts)
    items = mortal_client.submit_many("echo", texts[:200])
    with closing(sqlite3.connect(mortal_fleet.home / "store.db")) as database:
        stored = "SELECT coalesce(sum(stored), 0) FROM envelopes WHERE job = ?"
        until(lambda: database.execute(stored, [blocks.id]).fetchone()[0] > 0)
        sizes = [size for (size,) in database.execute("SELECT items FROM envelopes WHERE job = ?", [blocks.id])]
        assert max(sizes) > 64
        process = mortal_fleet.workers[0].process
        assert process is not None
        process.kill()
        until(lambda: mortal_fleet.workers[0].process is not process)
        gate.unlink()
        assert mortal_client.submit("echo", "urgent", priority="interactive").result(timeout_s=TIMEOUT_S)
        status = blocks.wait(timeout_s=TIMEOUT_S)
        items.wait(timeout_s=TIMEOUT_S)
        assert (status.succeeded, status.total) == (4000, 4000)
        counts = "SELECT count(*), count(DISTINCT seq || task) FROM item_results WHERE job = ?"
        assert database.execute(counts, [blocks.id]).fetchone() == (4000, 4000)
        rows = database.execute("SELECT count(*) FROM result_chunks WHERE job = ?", [blocks.id]).fetchone()[0]
        assert rows >= 2
    for row in blocks.results():
        crc = zlib.crc32(texts[row.seq].encode())
        if row.task == "say":
            assert row.output == [{"label": f"said {crc}", "score": 1.0}]
        else:
            assert row.vector == np.array([crc % 1000, 1], dtype="<f4").tobytes()
    assert failures(items, texts[:200]) == {}
