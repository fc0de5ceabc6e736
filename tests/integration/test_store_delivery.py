"""What workers and the reconciler rely on: one owner at a time, one terminal state, counters that are exact."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import update

from results_store.errors import InvalidRow
from results_store.records import Claim, EnvelopeState, Result, ResultState, Transaction
from results_store.sql.columns import pack_vector, unpack_vector
from results_store.sql.database import Database, Weight
from results_store.sql.schema import envelopes
from results_store.store import Store
from tests.integration.rows import batch, new_envelope, new_job, result, run_together, submit

NOW = 1_000.0
LINE = ("text", 9, 0)


def claim(store: Store, *ids: str, worker: str = "w1", now: float = NOW) -> list[Claim]:
    claims = store.claim(ids, worker=worker, now=now, lease_s=60)
    return [claims[id_].verdict for id_ in ids]


# --- results ---


def test_a_result_comes_back_as_it_went_in(store: Store) -> None:
    """Every field, also those that are left out, on both databases."""
    submit(store)
    given = result(
        7,
        "entities",
        state=ResultState.FAILED,
        key="row-7",
        output={"words": ["Zürich", "東京", "🚢"], "scores": [0.1, 1e-9, 3]},
        error={"kind": "InputTooLarge", "message": "items[7].input: too long"},
        model="text",
        model_revision="r1",
        precision="bf16",
        batch="b1",
        queued_at=1.25,
        batched_at=2.5,
        computed_at=3.75,
        stored_at=4.0,
    )
    bare = Result(job="job", seq=8, task="topic", envelope="e0", state=ResultState.CANCELLED)

    store.commit([given, bare], at=5.0)

    assert store.results("job") == [given, Result(**{**_fields(bare), "stored_at": 5.0})]
    assert isinstance(store.results("job")[0].state, ResultState)


def test_vectors_come_back_bit_by_bit(store: Store) -> None:
    """A vector is compared and indexed later; a rounded digit would be another vector."""
    submit(store)
    generator = random.Random(3)
    numbers = [generator.uniform(-1, 1) for _ in range(1280)] + [0.0, -0.0, 3.4e38, 1e-45]
    packed = pack_vector(numbers)

    store.commit([result(0, "embedding", output=None, vector=packed), result(1, "embedding", output=None, vector=b"")])

    first, second = store.results("job")
    assert (first.vector, second.vector) == (packed, b"")
    assert unpack_vector(packed) == pytest.approx(numbers, rel=1e-6)


def test_many_results_in_one_commit_take_another_way_to_the_same_rows(store: Store) -> None:
    """PostgreSQL gets large commits by COPY: every type, every gap, what is there already, what comes twice."""
    submit(store, items=400)
    given = [
        result(
            seq,
            "entities",
            state=list(ResultState)[seq % 4],
            key=None if seq % 3 else f"row\t{seq}\\N 東京\n",
            output=None if seq % 5 else {"words": ["\u2028", '"quoted"', "\\"], "scores": [0.1, 1e-9, seq]},
            vector=bytes(range(seq % 256)) if seq % 2 else None,
            error={"kind": "X", "message": "\t"} if seq % 4 == 1 else None,
            queued_at=seq / 7,
            stored_at=4.0,
        )
        for seq in range(400)
    ]
    store.commit(given[100:110])

    assert store.commit([*given, *given[:50]], done=["e0"]).inserted == 390
    assert store.commit(given).inserted == 0

    assert store.results("job") == given
    assert (store.job("job").done, store.job("job").finished) == (400, True)


def test_the_first_terminal_state_wins(store: Store) -> None:
    """A redelivered envelope may fail where it had succeeded; what a reader has seen must stay true."""
    submit(store)
    store.commit([result(0, output="first")])

    again = store.commit([result(0, state=ResultState.FAILED, output=None, error={"kind": "X", "message": ""})])

    assert again.inserted == 0
    assert [(r.state, r.output) for r in store.results("job")] == [(ResultState.SUCCEEDED, "first")]
    assert (store.job("job").succeeded, store.job("job").failed) == (1, 0)


def test_a_key_twice_in_one_commit_counts_once(store: Store) -> None:
    """Two copies of an envelope can meet in one group."""
    submit(store, items=2)

    committed = store.commit([result(0), result(1), result(0)])

    assert committed.inserted == 2
    assert store.job("job").done == 2


def test_counters_tell_the_states_apart(store: Store) -> None:
    """Progress is what an operator looks at first; each state has a counter of its own."""
    submit(store, items=10)
    states = (
        [ResultState.SUCCEEDED] * 4 + [ResultState.FAILED] * 3 + [ResultState.CANCELLED] * 2 + [ResultState.EXPIRED]
    )

    store.commit([result(seq, state=state) for seq, state in enumerate(states)], done=["e0"], at=NOW)

    status = store.job("job")
    assert (status.succeeded, status.failed, status.cancelled, status.expired) == (4, 3, 2, 1)
    assert (status.finished, status.finished_at) == (True, NOW)


def test_a_job_finishes_with_its_last_result_and_only_once(store: Store) -> None:
    """`finished_at` is when it was done, not when something was delivered again."""
    submit(store, 2)
    store.commit([result(0)], done=["e0"], at=NOW)
    assert store.job("job").finished_at is None

    store.commit([result(1, envelope="e1")], done=["e1"], at=NOW + 1)
    store.commit([result(1, envelope="e1")], done=["e1"], at=NOW + 2)

    assert store.job("job").finished_at == NOW + 1


def test_one_commit_may_serve_several_jobs(store: Store) -> None:
    """A group holds whatever came while the previous one ran."""
    for job in ("a", "b"):
        store.add_envelopes([new_envelope(f"{job}0", job=job)], jobs=[new_job(job)])

    committed = store.commit(
        [result(0, job="b", envelope="b0"), result(0, job="a", envelope="a0")], done=["b0", "a0"], batches=[batch("x")]
    )

    assert (committed.inserted, sorted(committed.done)) == (2, [("a", "a0"), ("b", "b0")])
    assert store.job("a").finished
    assert store.job("b").finished
    assert store.flight.recent() == [batch("x")]


def test_what_json_has_no_word_for_is_refused_by_name(store: Store) -> None:
    """A NaN would be refused by PostgreSQL and poison SQLite's JSON; nothing of the commit is kept."""
    submit(store, items=2)

    with pytest.raises(InvalidRow, match=r"results\[1, topic\]\.output: not a JSON value"):
        store.commit([result(0), result(1, output={"score": float("nan")})], done=["e0"])

    assert store.results("job") == []
    assert store.job("job").done == 0


def test_text_that_a_database_cannot_hold_is_replaced(store: Store) -> None:
    """PostgreSQL has no NUL and no lone surrogates; one such input must not stop its neighbours' results."""
    submit(store)
    store.commit([result(0, key="a\0b\ud800", output={"w\0": ["x\0", "\udfff", "\\u0000"]})])

    (stored,) = store.results("job")
    assert stored.key == "a\ufffdb\ufffd"
    assert stored.output == {"w\ufffd": ["x\ufffd", "\ufffd", "\\u0000"]}


def test_pages_hold_every_result_once_and_in_order(store: Store) -> None:
    """Keyset pages: nothing is skipped or repeated where items have several tasks."""
    submit(store)
    keys = [(seq, task) for seq in range(5) for task in ("sentiment", "spam", "topic")]
    store.commit([result(seq, task) for seq, task in random.Random(1).sample(keys, len(keys))])

    read: list[tuple[int, str]] = []
    while page := store.results("job", after=read[-1] if read else None, limit=4):
        read += [(r.seq, r.task) for r in page]

    assert read == keys


def test_single_items_can_be_asked_for(store: Store) -> None:
    """A handle that awaits one item reads that item's rows and no others."""
    submit(store)
    store.commit([result(seq, task) for seq in range(4) for task in ("spam", "topic")])

    found = store.results_of("job", [3, 1, 99])

    assert [(r.seq, r.task) for r in found] == [(1, "spam"), (1, "topic"), (3, "spam"), (3, "topic")]


def test_the_newest_failures_come_first(store: Store) -> None:
    """An operator looks at what fails now."""
    submit(store)
    store.commit([result(0), result(1, state=ResultState.FAILED)], at=1.0)
    store.commit([result(2, state=ResultState.FAILED)], at=2.0)

    assert [r.seq for r in store.recent_failures()] == [2, 1]


def test_many_writers_with_the_same_results_store_each_once(store: Store, store_url: str) -> None:
    """Redelivery at its worst: every worker has every envelope, in another order, at the same time."""
    envelopes = [f"e{number}" for number in range(12)]
    submit(store, items=20, ids=envelopes)
    owed = {id_: [result(20 * n + i, envelope=id_) for i in range(20)] for n, id_ in enumerate(envelopes)}
    inserted: list[int] = []

    def work(number: int) -> None:
        with Store(store_url) as own:
            for id_ in random.Random(number).sample(envelopes, len(envelopes)):
                others = random.Random(number).sample(envelopes, 4)
                rows = [row for each in (id_, *others) for row in owed[each]]
                committed = own.transact(
                    Transaction(results=rows, done=[id_], claims=others, worker=f"w{number}", lease_s=60, at=NOW)
                )
                inserted.append(committed.inserted)

    run_together(work, 4)

    status = store.job("job")
    assert sum(inserted) == status.succeeded == status.total == 240
    assert status.finished_at == NOW
    assert len(store.results("job")) == 240


# --- claims ---


def test_an_envelope_has_one_owner_while_its_lease_runs(store: Store) -> None:
    """A second copy of a message must not be computed beside the first, nor for ever be refused."""
    submit(store)

    assert claim(store, "e0", worker="w1") == [Claim.WORK]
    assert claim(store, "e0", worker="w2", now=NOW + 59) == [Claim.HELD]
    assert claim(store, "e0", worker="w1", now=NOW + 59) == [Claim.WORK]
    assert claim(store, "e0", worker="w2", now=NOW + 120) == [Claim.WORK]


def test_what_is_done_or_unknown_is_not_work(store: Store) -> None:
    """A late copy, and a message that somebody put on Redis by hand."""
    submit(store)
    store.commit([result(0)], done=["e0"])

    assert claim(store, "e0", "forged") == [Claim.DONE, Claim.UNKNOWN]


def test_envelopes_of_a_cancelled_job_are_handed_out_as_cancelled(store: Store) -> None:
    """Somebody has to write their `cancelled` results, and only one."""
    submit(store)
    store.cancel_job("job", NOW)

    assert claim(store, "e0", worker="w1") == [Claim.CANCELLED]
    assert claim(store, "e0", worker="w2") == [Claim.HELD]


def test_a_claim_may_be_faster_than_the_publisher(store: Store) -> None:
    """The worker can have the message before its producer has noted that it was published."""
    submit(store)
    claim(store, "e0")
    store.mark_published(["e0"], NOW)

    assert [d.state for d in store.depth()] == [EnvelopeState.PUBLISHED]
    assert store.take_overdue(now=NOW + 1, overdue_s=0) == []
    assert claim(store, "e0", worker="w2") == [Claim.HELD]


def test_only_one_of_many_claimants_gets_it(store: Store, store_url: str) -> None:
    """Four copies of each message reach four workers at once."""
    ids = [f"e{number}" for number in range(10)]
    submit(store, ids=ids)
    won: list[str] = []

    def work(number: int) -> None:
        with Store(store_url) as own:
            claims = own.claim(ids, worker=f"w{number}", now=NOW, lease_s=60)
            won.extend(id_ for id_, claimed in claims.items() if claimed.verdict is Claim.WORK)

    run_together(work, 4)

    assert sorted(won) == ids


def test_renewing_keeps_a_lease_that_is_still_held(store: Store) -> None:
    """A long batch is not a dead worker; but a lease that went to another cannot be taken back."""
    submit(store, 2)
    claim(store, "e0", "e1", worker="w1")
    claim(store, "e1", worker="w2", now=NOW + 61)

    assert store.renew(["e0", "e1"], worker="w1", lease_s=60, now=NOW + 60) == 1
    assert claim(store, "e0", worker="w3", now=NOW + 119) == [Claim.HELD]


def test_releasing_gives_back_without_counting_the_attempt(store: Store) -> None:
    """An operator's stop is not the envelope's fault."""
    submit(store)
    claim(store, "e0", worker="w1")

    assert store.release(["e0"], worker="w2") == 0
    assert store.release(["e0"], worker="w1") == 1
    assert claim(store, "e0", worker="w2") == [Claim.WORK]
    (taken,) = store.take_overdue(now=NOW + 61, overdue_s=61)
    assert taken.attempts == 1


# --- overdue ---


def test_an_accepted_envelope_that_nobody_published_is_taken_once(store: Store) -> None:
    """The producer died between its commit and Redis; the reconciler does its work, with the same bytes."""
    store.add_envelopes(
        [new_envelope("e0", payload=b"\x00\xff", content_type="application/x-msgpack")], jobs=[new_job()]
    )

    (taken,) = store.take_overdue(now=NOW, overdue_s=30)

    assert (taken.id, taken.job, taken.model, taken.priority) == ("e0", "job", "text", 9)
    assert (taken.payload, taken.content_type, taken.attempts) == (b"\x00\xff", "application/x-msgpack", 0)
    assert store.take_overdue(now=NOW + 1, overdue_s=30) == []


def test_what_was_taken_is_overdue_again_if_its_taker_died(store: Store) -> None:
    """A reconciler can be killed before it publishes; the envelope must not be lost with it."""
    submit(store)
    store.take_overdue(now=NOW, overdue_s=30)

    assert [e.id for e in store.take_overdue(now=NOW + 31, overdue_s=30)] == ["e0"]


def test_a_fresh_or_published_or_done_envelope_is_not_overdue(store: Store) -> None:
    """Publishing twice costs; a backlog that waits in Redis for hours is no reason to."""
    submit(store, 3)
    store.add_envelopes([new_envelope("fresh", created_at=NOW - 1)])
    store.mark_published(["e0", "e1"], NOW - 5000)
    claim(store, "e1")
    store.commit([result(2, envelope="e2")], done=["e2"])

    assert store.take_overdue(now=NOW, overdue_s=30) == []


def test_a_lease_that_ran_out_is_overdue(store: Store) -> None:
    """The worker was killed; its attempt stays counted, so that a poison envelope shows itself."""
    submit(store)
    claim(store, "e0")
    assert store.take_overdue(now=NOW + 60, overdue_s=60) == []

    (taken,) = store.take_overdue(now=NOW + 61, overdue_s=61)

    assert taken.attempts == 1
    assert claim(store, "e0", worker="w2", now=NOW + 62) == [Claim.WORK]


def test_a_lease_of_a_clock_that_was_ahead_holds_nothing_back(store: Store) -> None:
    """The store's clock was set back by ten minutes: a lease that then ends in eleven is over for all other workers."""
    submit(store, 2)
    claim(store, "e0", "e1", worker="w1", now=NOW + 600)

    assert claim(store, "e0", worker="w1") == [Claim.WORK]
    assert claim(store, "e0", worker="w2") == [Claim.HELD]
    assert [e.id for e in store.take_overdue(now=NOW, overdue_s=60, limit=100)] == ["e1"]
    assert claim(store, "e1", worker="w2", now=NOW + 1) == [Claim.WORK]


def test_a_lease_without_a_length_may_be_long(store: Store, store_url: str) -> None:
    """Workers of version 1.0 write their own time and no length: a clock that is an hour ahead costs no copies."""
    submit(store, 2)
    claim(store, "e0", "e1", worker="w1")
    database = Database(store_url, timeout_s=30)
    database.open()
    with database.write(Weight.NOTE) as connection:
        for id_, ends_at in (("e0", NOW + 3660), ("e1", NOW + 1e6)):
            older = update(envelopes).where(envelopes.c.id == id_)
            connection.execute(older.values(leased_until=ends_at, lease_s=None))
    database.close()

    assert claim(store, "e0", worker="w2") == [Claim.HELD]
    assert [e.id for e in store.take_overdue(now=NOW, overdue_s=60, limit=100)] == ["e1"]


def test_an_envelope_that_was_accepted_in_the_future_is_overdue(store: Store) -> None:
    """Its producer died before it could publish it, and the clock was wrong: it need not wait for that time."""
    submit(store)

    assert store.take_overdue(now=90, overdue_s=30) == []
    assert [e.id for e in store.take_overdue(now=60, overdue_s=30)] == ["e0"]


def test_the_store_sets_all_times(store: Store) -> None:
    """No time of a job, envelope, lease or result that machines compare comes from one of them."""
    began_at = store.now()
    store.create_job(new_job(created_at=None))
    accepted_at = store.add_envelopes([new_envelope("e0", created_at=None, deadline_s=60.0)])
    claimed = store.claim(["e0"], worker="w1", lease_s=10)["e0"]
    store.commit([result(0), result(7, envelope="u")], done=["e0", "u"], unlisted=["u"])
    store.commit([result(8, envelope="v")], done=["v"], unlisted=["v"])
    ended_at = store.now()

    assert accepted_at is not None
    job, rows = store.job("job"), store.results("job")
    times = [job.created_at, accepted_at, claimed.now, job.finished_at, *(row.stored_at for row in rows)]
    assert len(rows) == 3
    assert all(time is not None and began_at <= time <= ended_at for time in times)
    assert claimed.deadline_at == accepted_at + 60


def test_what_redis_has_lost_can_be_taken_back(store: Store) -> None:
    """Redis restarted empty: what was published and never claimed is nowhere but here."""
    submit(store, 3)
    store.mark_published(["e0", "e1"], NOW - 100)
    store.mark_published(["e2"], NOW - 1)
    claim(store, "e1")

    taken = store.take_overdue(now=NOW, overdue_s=50, oldest={LINE: None})

    assert [e.id for e in taken] == ["e0"]


def test_each_lane_is_judged_by_its_own_oldest_message(store: Store) -> None:
    """By another tenant's, the envelopes of a long list would be published a second time."""
    lanes = [store.tenants.enrol(name).lane for name in ("few", "many")]
    store.create_job(new_job())
    store.add_envelopes([new_envelope(f"e{lane}", lane=lane) for lane in lanes])
    store.mark_published([f"e{lane}" for lane in lanes], NOW - 100)
    few, many = (("text", 9, lane) for lane in lanes)

    oldest = {few: None, many: NOW - 100, ("vision", 9, lanes[1]): None, ("text", 3, lanes[1]): None}
    taken = store.take_overdue(now=NOW, overdue_s=50, oldest=oldest)

    assert [envelope.id for envelope in taken] == [f"e{lanes[0]}"]
    assert taken[0].lane == lanes[0]


def test_urgent_envelopes_are_returned_first_and_the_limit_holds(store: Store) -> None:
    """After an outage there may be a million; they are taken in portions, urgent ones first within each."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope(f"e{n}", priority=(9, 3, 0)[n % 3]) for n in range(9)])

    first = store.take_overdue(now=NOW, overdue_s=0, limit=6)
    second = store.take_overdue(now=NOW, overdue_s=0, limit=6)

    assert len(first) == 6
    assert len(second) == 3
    assert [e.priority for e in first] == sorted(e.priority for e in first)


def test_reconcilers_never_take_the_same_envelope(store: Store, store_url: str) -> None:
    """Every node runs a reconciler; they share the work and do not repeat it."""
    ids = [f"e{number:02}" for number in range(40)]
    submit(store, ids=ids)
    claim(store, *ids[:20])
    taken: list[str] = []

    def reconcile(_: int) -> None:
        with Store(store_url) as own:
            while portion := own.take_overdue(now=NOW + 61, overdue_s=61, limit=3):
                taken.extend(envelope.id for envelope in portion)

    run_together(reconcile, 4)

    assert sorted(taken) == ids


def _fields(given: Result) -> dict[str, object]:
    return {name: getattr(given, name) for name in Result.__slots__}


# --- envelopes that were never in the outbox ---


def test_results_of_unlisted_envelopes_make_their_job_grow(store: Store) -> None:
    """An item that is not durable is counted when its results come: once, though they are delivered twice."""
    submit(store, 1)
    rows = [result(seq, task, envelope="u") for seq in (7, 8) for task in ("topic", "spam")]
    first = store.commit(rows[:3], unlisted=["u"], at=NOW)
    again = store.commit(rows, done=["u"], unlisted=["u"], at=NOW)
    assert (first.inserted, first.done) == (3, ())
    assert (again.inserted, again.done) == (1, (("job", "u"),))
    status = store.job("job")
    assert (status.total, status.succeeded, status.finished) == (5, 4, False)
    assert status.finished_at is None
    store.commit([result(0)], done=["e0"], at=NOW)
    assert store.job("job").finished_at == NOW
    store.commit([result(9, envelope="v")], done=["v"], unlisted=["v"], at=NOW + 5)
    assert store.job("job").finished_at == NOW + 5


def test_listed_and_unlisted_results_share_a_transaction(store: Store) -> None:
    """The group committer mixes them; each is counted its own way, and both are announced."""
    submit(store, 1)
    rows = [result(0), result(5, envelope="u")]
    committed = store.commit(rows, done=["e0", "u"], unlisted=["u"], at=NOW)
    assert committed.done == (("job", "e0"), ("job", "u"))
    status = store.job("job")
    assert (status.items, status.total, status.succeeded) == (2, 2, 2)


def test_results_are_counted_by_blocks_of_items(store: Store) -> None:
    """Who follows a job finds what is new in it without reading it all."""
    submit(store, 1)
    store.commit([result(seq, task) for seq in (0, 9, 10, 35) for task in ("topic", "spam")], at=NOW)
    assert store.spread("job", 10) == {0: 4, 1: 2, 3: 2}
