"""An envelope is done when all that it owes is stored: its row counts it, whoever stored it."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from results_store.records import Claim, ResultState, Transaction
from results_store.sql.database import Weight
from results_store.sql.schema import envelopes
from results_store.store import Store
from results_store.writer import Writer
from tests.integration.rows import new_envelope, new_job, result, run_together, submit

NOW = 1_000.0
FAILED = {"state": ResultState.FAILED, "output": None, "error": {"kind": "ModelError", "message": "broke"}}


def row_of(store: Store, id_: str = "e0") -> tuple[str, int | None, dict[str, str] | None]:
    """Return the state of an envelope, the number of its results that are stored, and its error."""
    columns = (envelopes.c.state, envelopes.c.stored, envelopes.c.error)
    with store._database.read() as connection:
        state, stored, error = connection.execute(select(*columns).where(envelopes.c.id == id_)).one()
    return state, stored, error


def forget(store: Store, id_: str = "e0") -> None:
    """Leave the counter empty, as an older version did."""
    with store._database.write(Weight.NOTE) as connection:
        connection.execute(update(envelopes).where(envelopes.c.id == id_).values(stored=None))


def claim(store: Store, *ids: str, worker: str = "w1", now: float = NOW, **options: int) -> list[Claim]:
    claims = store.claim(ids, worker=worker, now=now, lease_s=60, **options)
    return [claims[id_].verdict for id_ in ids]


# --- the claim returns the body ---


def test_a_claim_returns_the_stored_body_of_work_to_do(store: Store) -> None:
    """A worker computes what was submitted, whatever its message holds; also to cancel it or to give it up."""
    store.add_envelopes(
        [new_envelope(f"e{n}", payload=bytes([n, 255]), content_type=f"type {n}") for n in range(5)],
        jobs=[new_job()],
    )
    store.add_envelopes([new_envelope("off", job="off", payload=b"off")], jobs=[new_job("off")])
    store.cancel_job("off", NOW)
    claim(store, "e1", "e3")
    store.commit([result(2, envelope="e2")], done=["e2"])

    ids = ["e0", "e1", "e2", "e3", "off", "forged"]
    claims = store.claim(ids, worker="w2", now=NOW + 30, lease_s=60)
    assert [(claims[id_].verdict, claims[id_].payload, claims[id_].content_type) for id_ in ids] == [
        (Claim.WORK, b"\x00\xff", "type 0"),
        (Claim.HELD, None, ""),
        (Claim.DONE, None, ""),
        (Claim.HELD, None, ""),
        (Claim.CANCELLED, b"off", "application/json"),
        (Claim.UNKNOWN, None, ""),
    ]
    store.note_failure("e3", worker="w1", error={"kind": "X", "message": "broke"})
    dead = store.claim(["e3"], worker="w2", now=NOW + 70, lease_s=20, max_attempts=1)["e3"]
    assert (dead.verdict, dead.payload) == (Claim.DEAD, b"\x03\xff")


def test_a_claim_of_deleted_inputs_says_so(store: Store) -> None:
    """There is work, and nothing to compute it from: the worker must be able to tell."""
    submit(store)
    store.commit([result(0)])  # the job is finished, though nobody ended the envelope
    store.retention.purge(finished_before=NOW * 1e9, keep_results=True)
    claimed = store.claim(["e0"], worker="w1", lease_s=NOW * 1e9)["e0"]
    assert (claimed.verdict, claimed.payload) == (Claim.WORK, None)


# --- done only when covered ---


def test_an_envelope_is_done_with_the_last_of_its_results(store: Store) -> None:
    """Results may come in parts: of a run that was interrupted, and of the next run."""
    submit(store, items=3)
    store.commit([result(0)])
    assert row_of(store) == ("accepted", 1, None)

    committed = store.commit([result(0), result(1), result(2)], done=["e0"])

    assert committed.done == (("job", "e0"),)
    assert row_of(store) == ("done", 3, None)


def test_a_commit_that_does_not_cover_its_envelope_leaves_it_overdue(store: Store) -> None:
    """A result is missing: the envelope is tried again at once, and its row says why."""
    submit(store, items=3)
    claim(store, "e0")

    committed = store.commit([result(0), result(2)], done=["e0"], drop_inputs=True, at=NOW + 1)

    assert (committed.inserted, committed.done) == (2, ())
    error = {"kind": "NotCovered", "message": "the attempt covered 2 of 3 results"}
    assert row_of(store) == ("published", 2, error)
    [taken] = store.take_overdue(now=NOW + 2, overdue_s=NOW)
    assert (taken.id, taken.attempts, taken.payload) == ("e0", 1, b"{}")
    assert claim(store, "e0", worker="w2", now=NOW + 2) == [Claim.WORK]
    assert store.commit([result(n) for n in range(3)], done=["e0"]).done == (("job", "e0"),)
    assert store.job("job").finished


def test_one_result_twice_covers_nothing_twice(store: Store) -> None:
    """The same key in a commit, or in two, is one row."""
    submit(store, items=2)
    assert store.commit([result(0), result(0)], done=["e0"]).done == ()
    assert store.commit([result(0)], done=["e0"]).done == ()
    assert row_of(store)[:2] == ("accepted", 1)


def test_an_envelope_that_never_gets_its_results_is_given_up(store: Store) -> None:
    """Each attempt that leaves something out counts, and the dead letter has the reason."""
    submit(store, items=2)
    for n in range(2):
        assert claim(store, "e0", now=NOW + n, max_attempts=2) == [Claim.WORK]
        store.commit([result(0)], done=["e0"], at=NOW + n)
    assert claim(store, "e0", now=NOW + 5, max_attempts=2) == [Claim.DEAD]
    store.commit([result(n, **FAILED | {"error": None}) for n in range(2)], dead=["e0"])

    assert row_of(store)[:2] == ("dead", 2)
    _, second = store.results("job")
    assert second.error is not None
    assert second.error["cause"]["kind"] == "NotCovered"


def test_results_that_others_stored_cover_as_well(store: Store) -> None:
    """A gateway's batch that is over stores what is missing, under its own name; the worker comes late."""
    submit(store, items=3)
    claim(store, "e0")
    store.commit([result(n, envelope="batch", state=ResultState.EXPIRED) for n in range(2)], unlisted=["batch"])

    assert store.commit([result(n) for n in range(3)], done=["e0"]).done == (("job", "e0"),)
    assert row_of(store)[:2] == ("done", 3)


def test_an_envelope_of_an_older_version_is_done_as_well(store: Store) -> None:
    """Its row counted nothing: some results are there already, from a worker of that version."""
    submit(store, items=3)
    store.commit([result(0)])
    forget(store)

    assert store.commit([result(1)], done=["e0"]).done == ()
    forget(store)
    assert store.commit([result(n) for n in range(3)], done=["e0"]).done == (("job", "e0"),)
    assert row_of(store)[:2] == ("done", 3)


@pytest.mark.parametrize("counted", [True, False])
def test_a_replay_counts_what_it_deletes(store: Store, *, counted: bool) -> None:
    """Replayed envelopes are done again once the deleted results are there again, and not before."""
    submit(store, 2, items=3)
    rows = {id_: [result(3 * n + i, envelope=id_) for i in range(3)] for n, id_ in enumerate(("e0", "e1"))}
    broken = [result(0, **FAILED), result(1, **FAILED), rows["e0"][2]]
    store.commit([*broken, rows["e1"][0], *(result(n, envelope="e1", **FAILED) for n in (4, 5))], done=["e0", "e1"])
    if not counted:
        forget(store)

    assert store.dead_letters.replay().results == 4

    assert row_of(store)[:2] == ("accepted", 1 if counted else None)
    assert row_of(store, "e1")[:2] == ("accepted", 1)
    assert store.commit(rows["e0"][:2], done=["e0"]).done == ((("job", "e0"),) if counted else ())
    committed = store.commit([*rows["e0"], *rows["e1"]], done=["e0", "e1"])
    assert sorted(committed.done) == [("job", "e0"), ("job", "e1")]
    assert store.job("job").finished


def test_a_group_counts_each_envelope_by_itself(store: Store) -> None:
    """The group committer mixes whole, partial, dead and unlisted envelopes, and those of pipelines."""
    submit(store, 5, items=2)
    rows = [result(2 * n + i, envelope=f"e{n}") for n in range(5) for i in range(2)]
    del rows[3]  # of e1
    committed = store.transact(
        Transaction(
            results=[*rows[:-1], result(99, envelope="u")],
            done=["e0", "e1", "e2", "u"],
            dead=["e3"],
            unlisted=["u"],
            stepped=["e2"],
            at=NOW,
        )
    )
    assert sorted(committed.done) == [("job", "e0"), ("job", "e2"), ("job", "e3"), ("job", "u")]
    assert [row_of(store, f"e{n}")[:2] for n in range(5)] == [
        ("done", 2),
        ("accepted", 1),
        ("done", 2),
        ("dead", 2),
        ("accepted", 1),
    ]


def test_only_inputs_of_covered_envelopes_are_dropped(store: Store) -> None:
    """A worker that drops inputs once they are computed needs those of the others for the next attempt."""
    submit(store, 2, items=2)
    with Writer(store, worker="w1", lease_s=60, drop_inputs=True) as committer:
        committer.commit(Transaction(results=[result(0), result(1)], done=["e0"]))
        committer.commit(Transaction(results=[result(2, envelope="e1")], done=["e1"]))
    assert set(store.inputs(["e0", "e1"])) == {"e1"}


def test_workers_that_share_an_envelope_cover_it_once(store: Store, store_url: str) -> None:
    """Each stores all, in its own order, a result at a time: whoever is last ends it."""
    submit(store, items=12)

    def work(number: int) -> None:
        with Store(store_url) as own:
            for n in range(12):
                own.commit([result((n * 5 + number) % 12)], done=["e0"])

    run_together(work, 4)

    assert row_of(store)[:2] == ("done", 12)
    assert (store.job("job").succeeded, store.job("job").finished) == (12, True)


def test_a_cancelled_item_that_is_alone_ends_its_envelope(store: Store) -> None:
    """As a handle's `cancel` does it: all that is owed is there, before any worker has it."""
    submit(store, 2, items=1)
    cancelled = result(0, state=ResultState.CANCELLED, output=None)
    assert store.commit([cancelled], done=["e0"]).done == (("job", "e0"),)
    assert store.commit([result(1, envelope="e1")]).done == ()
    assert store.commit([result(1, envelope="e1", state=ResultState.CANCELLED)], done=["e1"]).done == (("job", "e1"),)
