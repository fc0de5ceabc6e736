"""The search for the item that kills its worker, played with a real store: who is to blame, and who is not."""

from __future__ import annotations

import pytest

from producers.wire.messages import VERSION, Envelope, Item, Priority
from results_store.records import ALONE_AFTER_DEATHS, Claim, Result, ResultState, Transaction
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result
from workers.envelope.portions import LOST_AFTER_DEATHS, Portion, portions

TASKS = ("topic", "tone")


class Died(Exception):
    """The worker died: its lease runs out."""


class Workers:
    """Workers that take the envelope one after the other, and die of the items in `killers`."""

    def __init__(self, store: Store, items: int) -> None:
        self.envelope = Envelope(
            version=VERSION,
            id="e0",
            job="job",
            model="text",
            priority=Priority.STANDARD,
            queued_at=1.0,
            items=tuple(Item(seq, f"text {seq}", TASKS) for seq in range(items)),
        )
        self.killers: set[int] = set()
        self.ran: list[list[int]] = []
        self._store = store
        self._now = 1_000.0
        store.create_job(new_job())
        store.add_envelopes([new_envelope("e0", items=items, results=2 * items)])

    def run(self) -> list[int]:
        """Return the sizes of the portions that a worker ran until it finished the envelope. Raises Died."""
        claimed = self._store.claim(["e0"], worker="w", now=self._now, lease_s=1)["e0"]
        self._now += 2
        assert claimed.verdict is Claim.WORK
        sizes = []
        alone = portions(self.envelope, claimed, [], self._store)
        for portion in alone if claimed.alone else [Portion(self.envelope, [])]:
            seqs = [item.seq for item in portion.envelope.items]
            self.ran.append(seqs)
            if self.killers.intersection(seqs):
                raise Died
            sizes.append(len(seqs))
            self.commit(portion)
        return sizes

    def commit(self, portion: Portion) -> None:
        items = portion.envelope.items
        computed = [result(item.seq, task, output="fine") for item in items for task in item.tasks]
        done = ["e0"] if portion.last else []
        self._store.transact(Transaction(results=[*portion.results, *computed], done=done, at=self._now))

    def run_until_it_ends(self) -> int:
        """Return the number of deaths until the envelope is done."""
        for deaths in range(50):
            try:
                self.run()
            except Died:
                continue
            return deaths
        raise AssertionError("the workers die for ever")


def outcomes(store: Store) -> dict[int, str]:
    """Return the state of each item, whose tasks must have the same."""
    rows: dict[int, list[Result]] = {}
    for row in store.results("job"):
        rows.setdefault(row.seq, []).append(row)
    assert all([row.task for row in own] == sorted(TASKS) for own in rows.values())
    for row in (row for own in rows.values() for row in own if row.state is ResultState.FAILED):
        assert row.error is not None
        assert row.error["kind"] == "WorkerLost"
        assert "argosy replay --error WorkerLost" in row.error["message"]
    states = {seq: {row.state.value for row in own} for seq, own in rows.items()}
    return {seq: state for seq, [state] in states.items()}


def test_an_innocent_envelope_stays_whole(store: Store) -> None:
    """However often its workers die of something else, it is computed in one portion, alone."""
    workers = Workers(store, 3)
    workers.killers = {0}
    for _ in range(ALONE_AFTER_DEATHS):
        with pytest.raises(Died):
            workers.run()
    workers.killers = set()
    assert workers.run() == [3]
    assert outcomes(store) == dict.fromkeys(range(3), "succeeded")


@pytest.mark.parametrize("killers", [{0}, {2}, {4}, {1, 3}, {0, 1, 2, 3, 4}], ids=str)
def test_the_items_that_kill_fail_and_the_others_succeed(store: Store, killers: set[int]) -> None:
    """Each of them three deaths alone; no death is spent on an innocent."""
    workers = Workers(store, 5)
    workers.killers = killers
    assert workers.run_until_it_ends() == ALONE_AFTER_DEATHS + 1 + LOST_AFTER_DEATHS * len(killers)
    assert outcomes(store) == {seq: "failed" if seq in killers else "succeeded" for seq in range(5)}
    assert store.job("job").finished
    innocent = [seq for seqs in workers.ran if len(seqs) == 1 for seq in seqs if seq not in killers]
    assert innocent == sorted(set(range(5)) - killers), "an item with its results ran again"


def test_a_lone_item_is_its_own_envelope(store: Store) -> None:
    """Nothing is learnt from running it together with nobody."""
    workers = Workers(store, 1)
    workers.killers = {0}
    assert workers.run_until_it_ends() == ALONE_AFTER_DEATHS + LOST_AFTER_DEATHS
    assert outcomes(store) == {0: "failed"}


def test_deaths_between_items_accuse_nobody(store: Store) -> None:
    """Kills from outside hit another item each time; each worker goes on behind the last result."""
    workers = Workers(store, 5)
    workers.killers = {0}
    for _ in range(ALONE_AFTER_DEATHS + 1):
        with pytest.raises(Died):
            workers.run()
    for killed_at in range(5):
        workers.killers = {killed_at}
        with pytest.raises(Died):
            workers.run()
    workers.killers = set()
    assert workers.run() == [1, 0]
    assert outcomes(store) == dict.fromkeys(range(5), "succeeded")


def test_a_stop_leaves_no_suspicion(store: Store) -> None:
    """An operator who stops the worker in the middle of an item that runs alone, again and again, accuses nobody."""
    workers = Workers(store, 2)
    workers.killers = {0}
    for _ in range(ALONE_AFTER_DEATHS + 1):
        with pytest.raises(Died):
            workers.run()
    for _ in range(LOST_AFTER_DEATHS + 1):
        with pytest.raises(Died):
            workers.run()
        store.release(["e0"], worker="w")
    workers.killers = set()
    assert workers.run() == [1, 1, 0]
    assert outcomes(store) == dict.fromkeys(range(2), "succeeded")
