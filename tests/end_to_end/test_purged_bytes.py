"""After a purge no byte of an input is left: every file of a fleet, every key of Redis, every table is searched for marks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from click.testing import CliRunner
from sqlalchemy import select

from producers import Client, NewItem
from producers.commands.main import main
from producers.wire.blobs import YOUNG_S, Blobs
from producers.wire.connection import Connection
from producers.wire.publisher import Publisher
from results_store.celery_results.transactions import close_shared
from results_store.sql.schema import cached_results, metadata
from results_store.sql.waiting.schedules import Planned, Schedule
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

#: No word of it is in a message of ours, or in an error of the scripted model.
MARK = "quokka7461"

TIMEOUT_S = 120


@pytest.fixture
def fleet(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalFleet]:
    """A fleet that keeps inputs of over 4,000 bytes as blobs, and results for later jobs unless it drops inputs."""
    kind = getattr(request, "param", "")
    if kind == "postgresql":
        monkeypatch.setenv("ARGOSY_STORE_URL", request.getfixturevalue("postgresql_url"))
    drop = "drop_inputs = true\n" if kind == "drop_inputs" else ""
    cache = "" if drop else '[result_cache]\ntasks = ["echo", "shout"]\n'
    settings = SCRIPTED.replace("[worker]\n", f"[worker]\n{drop}", 1)
    with fleet_in(
        tmp_path, f'{settings}[blobs]\nurl = "file://{tmp_path}/blobs"\ninline_bytes = 4000\n{cache}'
    ) as fleet:
        yield fleet


def submit_every_kind(client: Client, **options: object) -> None:
    """Inputs that succeed, fail in every step, kill the device, are large, are keys, or are not durable."""
    words = ("fine", "bug", "raise", "die", "refuse", "short")
    inputs = [NewItem(f"{word} {MARK}-{word}", key=f"{MARK}-key-{word}") for word in words]
    inputs.append(NewItem(f"{MARK}-large " * 500))
    job = client.submit_many(["echo", "shout"], inputs, name="marked", **options)  # type: ignore[arg-type]
    keyed = client.submit_many("echo", [f"{MARK}-again"], idempotency_key=f"{MARK}-idempotency", **options)  # type: ignore[arg-type]
    lone = client.submit("echo", f"{MARK}-direct", durable=False)
    lone.result(timeout_s=TIMEOUT_S)
    for one in (job, keyed):
        one.wait(timeout_s=TIMEOUT_S)


def submit_by_celery(fleet: LocalFleet) -> None:
    """As an application does that has no code of ours, with its results in our database."""
    app = Celery("foreign", broker=fleet.broker_url, backend=f"argosy+{fleet.store_url}", set_as_current=False)
    with closing(app):
        envelope = {"model": "scripted", "items": [{"seq": 0, "input": f"{MARK}-celery", "tasks": ["echo"]}]}
        assert app.send_task("argosy.envelope", [envelope], queue="argosy.scripted").get(timeout=TIMEOUT_S)
    close_shared(fleet.store_url)


def in_tables(fleet: LocalFleet) -> list[str]:
    """Return the columns that have the mark in some row."""
    found = []
    with Store(fleet.store_url) as store, store._database.read() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                found += [f"{table.name}.{name}" for name, value in row.items() if MARK in _text(value)]
    return sorted(set(found))


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def number_cached(fleet: LocalFleet) -> int:
    """Return the number of results that are kept for later jobs: their digests tell of inputs, too."""
    with Store(fleet.store_url) as store, store._database.read() as connection:
        return len(connection.execute(select(cached_results)).all())


def in_redis() -> list[str]:
    """Return the keys that hold the mark, whatever their type."""
    with closing(Publisher(Connection().broker_url)) as publisher:
        redis = publisher.redis
        return [str(key) for key in redis.scan_iter() if MARK.encode() in (bytes(redis.dump(key) or b"") + bytes(key))]


def rewritten(fleet: LocalFleet) -> None:
    """Let Valkey write its file anew: until then it has the commands of the past."""
    with closing(Publisher(Connection().broker_url)) as publisher:
        publisher.redis.bgrewriteaof()
        until(lambda: not publisher.redis.info("persistence")["aof_rewrite_in_progress"])


def in_files(folder: Path) -> list[str]:
    """Return the files that have the mark, under the fleet's folder: store, logs, Valkey's file, blobs, spool."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(str(file.relative_to(folder)) for file in files if MARK.encode() in file.read_bytes())


def fail_a_scheduled_run(store: Store) -> None:
    """Its error quotes a row of its file, which is an input."""
    assert store.schedules.add(Schedule(name="nightly", submission="{}", next_at=1.0))
    run = store.schedules.take("here", "n", lambda *_: Planned(1.0, None))
    assert run is not None
    store.schedules.end(run, "failed", error=f"InvalidInput: rows.csv:3: '{MARK}' is no number")


def operate() -> None:
    """Leave entries in the audit log about jobs and items that have the mark."""
    with Client() as client:
        job = client.submit_many("echo", [f"raise {MARK}"], name=f"{MARK}-operated")
        job.wait(timeout_s=TIMEOUT_S)
        argosy("replay", job.id)
        job.wait(timeout_s=TIMEOUT_S)
        argosy("pause", "task", "shout", "--reason", "a test")
        paused = client.submit_many("shout", [f"{MARK}-paused"])
        argosy("cancel", paused.id)
        argosy("resume", "task", "shout")
        paused.wait(timeout_s=TIMEOUT_S)


def sweep_blobs(fleet: LocalFleet) -> None:
    """Sweep as nodes do once the blobs are no longer young."""
    with Store(fleet.store_url) as store:
        Blobs(Connection().blobs, clock=lambda: time.time() + YOUNG_S + 1).sweep(store.retention.with_inputs)


def argosy(*arguments: str) -> None:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("fleet", ["sqlite", "postgresql"], indirect=True)
def test_a_purge_of_everything_leaves_no_byte(fleet: LocalFleet, tmp_path: Path) -> None:
    """`argosy purge --older-than`, with SQLite's free pages; PostgreSQL's are not read."""
    with Client() as client:
        submit_every_kind(client)
    submit_by_celery(fleet)
    with Store(fleet.store_url) as store:
        store.webhooks.add(store.jobs(limit=1)[0].id, f"https://example.com/{MARK}")
        fail_a_scheduled_run(store)
    operate()
    places = {"jobs.name", "payloads.payload", "results.key", "schedule_runs.error", "webhooks.url"}
    assert places <= {*in_tables(fleet)}, "the search finds what is there"
    assert any(file.startswith("blobs/") for file in in_files(tmp_path))
    assert number_cached(fleet)

    argosy("purge", "--older-than", "0s", *(["--vacuum"] if fleet.store_url.startswith("sqlite") else []), "--yes")
    sweep_blobs(fleet)
    rewritten(fleet)

    assert (in_tables(fleet), in_redis(), in_files(tmp_path)) == ([], [], [])
    assert number_cached(fleet) == 0
    with Store(fleet.store_url) as store:
        assert {"purge", "replay", "cancel", "pause", "resume"} <= {entry.action for entry in store.audit.newest()}
        assert [one.name for one in store.schedules.every()] == ["nightly"]


def test_a_time_to_live_leaves_no_byte(fleet: LocalFleet, tmp_path: Path) -> None:
    """`ttl_s`: the purge that nodes run, and that the command runs without `--older-than`."""
    with Client() as client:
        client.submit_many("echo", [f"{MARK}-kept"], ttl_s=10**6).wait(timeout_s=TIMEOUT_S)
        job = client.submit_many("echo", [f"fine {MARK}", f"raise {MARK}", f"{MARK} " * 1000], ttl_s=0.01)
        job.wait(timeout_s=TIMEOUT_S)
    until(lambda: _is_gone(job.id))
    sweep_blobs(fleet)
    assert [column for column in in_tables(fleet) if not column.startswith("payloads")] == []
    assert in_redis() == []
    assert not any(file.startswith(("blobs/", "home/logs/")) for file in in_files(tmp_path))


def _is_gone(job: str) -> bool:
    argosy("purge", "--yes")
    with Store(Connection().store_url) as store:
        return not store.retention.existing([job])


def test_a_purge_of_inputs_leaves_results_without_them(fleet: LocalFleet, tmp_path: Path) -> None:
    """`argosy purge --inputs`: the results stay, with the keys that the submitter chose."""
    with Client() as client:
        submit_every_kind(client)
    argosy("purge", "--older-than", "0s", "--inputs", "--vacuum", "--yes")
    sweep_blobs(fleet)
    rewritten(fleet)

    assert (in_tables(fleet), number_cached(fleet)) == (["jobs.idempotency_key", "results.key"], 0)
    assert in_redis() == []
    assert {file for file in in_files(tmp_path) if not file.startswith("home/store.db")} == set()


@pytest.mark.parametrize("fleet", ["drop_inputs"], indirect=True)
def test_dropped_inputs_are_gone_at_once(fleet: LocalFleet, tmp_path: Path) -> None:
    """`drop_inputs`: of what succeeded; what failed is kept for a replay, until it is purged."""
    with Client() as client:
        job = client.submit_many("echo", [f"fine {MARK}", f"{MARK} " * 1000])
        job.wait(timeout_s=TIMEOUT_S)
        sweep_blobs(fleet)
        assert (in_tables(fleet), in_redis()) == ([], [])
        assert not any(file.startswith("blobs/") for file in in_files(tmp_path))
        client.submit_many("echo", [f"raise {MARK}"]).wait(timeout_s=TIMEOUT_S)
        assert in_tables(fleet) == ["payloads.payload"]
