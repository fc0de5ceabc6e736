"""A fleet of an older version is upgraded under load: the schema, then the workers one by one, then the producers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from results_store.records import ResultState
from results_store.sql.schema import REVISION
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.upgrade.versions import FLEET, Process, Stored, kill, newer, older


def test_a_fleet_is_upgraded_under_load(
    before: Path, store_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, doubled or wrong, and each job ends, though a worker of either version is killed on the way."""
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    (tmp_path / "fleet.toml").write_text(FLEET, encoding="utf-8")
    old, new = older(before), newer()
    stored = Stored(store_url)
    with ended_at_last() as started:
        old.migrate(tmp_path)
        first, second = started(old.worker(tmp_path, "first")), started(old.worker(tmp_path, "second"))
        earlier = old.producer(tmp_path, "earlier")
        started(earlier.process)
        stored.grows(by=500)

        new.migrate(tmp_path)
        assert stored.revisions() == ("0009", REVISION)
        stored.grows(by=500)
        kill(first)
        first = started(old.worker(tmp_path, "first"))  # by its supervisor, which knows the old version alone
        stored.grows(by=500)

        first.terminate()
        assert first.wait() == 0
        first = started(new.worker(tmp_path, "first"))
        stored.grows(by=500)
        kill(second)  # with leases by its own clock
        stored.grows(by=500)
        second = started(new.worker(tmp_path, "second"))
        stored.grows(by=500)

        later = new.producer(tmp_path, "later")
        started(later.process)
        stored.grows(by=500)
        owed = earlier.stop()
        stored.grows(by=500)
        kill(first)
        first = started(new.worker(tmp_path, "first"))
        owed |= later.stop()
        check(store_url, owed)
        for worker in (first, second):
            worker.terminate()
            worker.wait()


def check(store_url: str, owed: dict[str, list[str]]) -> None:
    """Compare every row of every job with its text."""
    with Store(store_url) as store:
        until(lambda: all(store.job(job).finished for job in owed), timeout_s=120)
        until(lambda: store.depth() == [])
        for job, texts in owed.items():
            rows = store.results(job, limit=len(texts) + 1)
            assert [row.seq for row in rows] == list(range(len(texts)))
            assert {row.state for row in rows} == {ResultState.SUCCEEDED}
            assert [row.output for row in rows] == [{"crc": zlib.crc32(text.encode())} for text in texts]
            assert (store.job(job).total, store.job(job).succeeded) == (len(texts), len(texts))
        assert store.dead_letters.newest() == []


@contextmanager
def ended_at_last() -> Iterator[Callable[[Process], Process]]:
    """Kill the processes that a failed test leaves."""
    with ExitStack() as stack:

        def started(process: Process) -> Process:
            stack.callback(lambda: process.poll() is None and kill(process))
            return process

        yield started
