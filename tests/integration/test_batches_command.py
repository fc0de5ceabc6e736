"""`argosy batches` and the estimate of `argosy status`: figures of the flight recorder."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner, Result

from producers.commands.batch_figures import Window, figures
from producers.commands.main import main
from results_store.store import Store
from tests.integration.rows import batch, new_envelope, new_job


@pytest.fixture
def store_url(sqlite_url: str) -> str:
    """The commands do nothing that depends on the database: one is enough."""
    return sqlite_url


@pytest.fixture(autouse=True)
def environment(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", "redis://127.0.0.1:1/0")  # nobody asks it


def argosy(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_figures_of_a_window() -> None:
    """By hand: two devices, one busy for half of the ten seconds, the other for a tenth; a quarter padding."""
    ran = [
        batch("a", worker="w1", started_at=101.0, forward_s=5.0, rows=8, tokens=60, padded_tokens=100, items=10),
        batch("b", worker="w2", started_at=109.5, forward_s=1.0, rows=5, tokens=90, padded_tokens=100, items=2),
        batch("c", worker="w2", started_at=99.0, forward_s=1.5, rows=1, tokens=9, padded_tokens=10, predicted_s=3.0),
    ]
    ran[0].priorities.update({"0": 8, "9": 2})
    found = figures(ran, 100.0, 110.0)
    assert (found.batches, found.items, found.rows) == (3, 14, 14)
    assert found.waste == pytest.approx(1 - 159 / 210)
    assert found.sizes == {1: 1, 8: 2}
    assert found.wastes == {0.1: 2, 0.5: 1}
    assert found.error == pytest.approx(1.0)
    assert {device.name: device.busy for device in found.devices} == {
        "cpu (w1)": pytest.approx(0.5),
        "cpu (w2)": pytest.approx(0.1),
    }
    assert found.priorities == {0: pytest.approx(4.0 / 7.5), 9: pytest.approx(3.5 / 7.5)}


def test_once_shows_sizes_padding_and_busy_time(store: Store) -> None:
    """What a person looks at, and what a program reads."""
    now = time.time()
    store.commit([], batches=[batch(f"b{n}", started_at=now - n, items=4, rows=4) for n in range(5)])
    shown = argosy("batches", "--once")
    assert shown.exit_code == 0, shown.output
    for word in ("5 batches of 20 items", "<= 4", "bulk", "cpu (w1)", "padding 16.7%"):
        assert word in shown.output
    assert json.loads(argosy("batches", "--json").output)["items"] == 20
    assert json.loads(argosy("batches", "--json", "--model", "vision").output)["items"] == 0


def test_without_batches_it_says_how_to_look_further_back(store: Store) -> None:
    """Rather than an empty screen."""
    store.commit([], batches=[batch("old", started_at=time.time() - 300)])
    assert "--last" in argosy("batches", "--once").output
    assert "1 batches" in argosy("batches", "--once", "--last", "10m").output


def test_watching_reads_what_is_new_and_forgets_what_is_old(store: Store) -> None:
    """It may run for days on a fleet with millions of batches."""
    now = time.time()
    window = Window(60.0)
    store.commit([], batches=[batch("b0", started_at=now - 59.9), batch("b1", started_at=now - 1)])
    assert [one.id for one in window.look(store, now)] == ["b0", "b1"]
    store.commit([], batches=[batch("b2", started_at=now - 2)])  # stored late
    assert [one.id for one in window.look(store, now + 0.2)] == ["b2", "b1"]


def test_a_long_batch_is_found_whenever_it_began(store: Store) -> None:
    """It is stored at its end: after batches that began later, and perhaps when its begin is out of the window."""
    now = time.time()
    window = Window(60.0)
    store.commit([], batches=[batch("short", started_at=now - 1)])
    assert [one.id for one in window.look(store, now)] == ["short"]
    store.commit([], batches=[batch("long", worker="w2", started_at=now - 15, forward_s=15.0)])
    store.commit([], batches=[batch("longer", worker="w3", started_at=now - 90, forward_s=89.0)])
    found = window.look(store, now + 1)
    assert [one.id for one in found] == ["longer", "long", "short"]
    busy = {device.name: device.busy for device in figures(found, window.since, now + 1).devices}
    assert busy["cpu (w2)"] == pytest.approx(15 / 60)
    assert busy["cpu (w3)"] == pytest.approx(58 / 60)


def test_a_worker_whose_clock_is_ahead_hides_no_other(store: Store) -> None:
    """Its batches seem to be of the future."""
    now = time.time()
    window = Window(60.0)
    store.commit([], batches=[batch("ahead", started_at=now + 40)])
    assert [one.id for one in window.look(store, now)] == ["ahead"]
    store.commit([], batches=[batch("right", worker="w2", started_at=now + 0.5)])
    assert [one.id for one in window.look(store, now + 1)] == ["right", "ahead"]


def test_more_batches_than_a_look_reads_are_a_shorter_window(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates are those of the time that was read, and the command says so. A model's batches are read alone."""
    monkeypatch.setattr("producers.commands.batch_figures.MOST", 20)
    now = time.time()
    ran = [batch(f"b{n}", started_at=now - n, forward_s=0.5, items=4) for n in range(1, 60)]
    store.commit([], batches=[*ran, batch("rare", model="vision", started_at=now - 50)])
    window = Window(60.0)
    assert len(window.look(store, now)) == 20
    assert (window.cut_off, now - window.since) == (True, pytest.approx(20.0))
    store.commit([], batches=[batch("next", started_at=now)])
    assert len(window.look(store, now + 1)) == 21
    assert (window.cut_off, now + 1 - window.since) == (True, pytest.approx(21.0))
    assert "cut off, since a look reads at most 20 batches" in argosy("batches", "--once").output.replace("\n", " ")
    shown = json.loads(argosy("batches", "--json").output)
    assert shown["cut_off"] is True
    assert shown["items"] / shown["seconds"] == pytest.approx(4.0, rel=0.2)
    rare = json.loads(argosy("batches", "--json", "--model", "vision").output)
    assert (rare["batches"], rare["cut_off"]) == (1, False)


def test_status_says_how_long_what_waits_will_take(store: Store) -> None:
    """Items that wait, times what an item lately took."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope(f"e{n}", items=50, results=50) for n in range(4)])
    assert "waiting: text, bulk: 200 items, no estimate yet" in argosy("status").output
    store.commit([], batches=[batch("b0", forward_s=0.5, items=10)])
    assert "waiting: text, bulk: 200 items, about 10 s of work" in argosy("status").output
