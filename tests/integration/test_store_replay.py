"""Giving up, and putting back: an operator may try again what failed, and nothing is lost or doubled by it."""

from __future__ import annotations

import threading

import psycopg
import pytest

from results_store.records import (
    ALL_ITEMS,
    ALONE_AFTER_DEATHS,
    MAX_ATTEMPTS,
    Claim,
    Claimed,
    Depth,
    EnvelopeState,
    Replayed,
    Result,
    ResultState,
    Transaction,
)
from results_store.store import Store
from results_store.writer import Writer
from tests.integration.rows import new_envelope, new_job, result, run_together, submit

NOW = 1_000.0
ERROR = {"kind": "ModelError", "message": "broke", "traceback": "Traceback: here"}


def failed(seq: int, **changes: object) -> Result:
    return result(seq, **{"state": ResultState.FAILED, "output": None, "error": ERROR, **changes})


def attempt(store: Store, id_: str, at: float, worker: str = "w1", **options: int) -> Claim:
    return store.claim([id_], worker=worker, now=at, lease_s=1, **options)[id_].verdict


def give_up(store: Store, id_: str = "e0", seq: int = 0) -> None:
    """Two attempts that end with an error, then the verdict, then its burial."""
    for n in range(2):
        assert attempt(store, id_, NOW + n * 10, max_attempts=2) is Claim.WORK
        assert store.note_failure(id_, worker="w1", error=ERROR)
    assert attempt(store, id_, NOW + 20, max_attempts=2) is Claim.DEAD
    store.commit([failed(seq, envelope=id_, error=None)], dead=[id_], at=NOW + 30)


def die(store: Store, id_: str, at: float, worker: str = "w1", **options: int) -> Claimed:
    """Return the claim of an attempt whose worker dies: its lease has run out at `at` + 2."""
    return store.claim([id_], worker=worker, now=at, lease_s=1, **options)[id_]


def unfinished(store: Store) -> list[tuple[EnvelopeState, int]]:
    return [(found.state, found.envelopes) for found in store.depth()]


# --- giving up ---


def test_an_envelope_is_given_up_after_the_limit(store: Store) -> None:
    """One that cannot be run at all would otherwise be tried for ever."""
    submit(store)

    give_up(store)

    (row,) = store.results("job")
    assert row.error == {
        "kind": "TooManyAttempts",
        "message": "given up after 2 attempts, the last by w1: broke",
        "attempts": 2,
        "worker": "w1",
        "cause": ERROR,
    }
    assert store.job("job").finished
    assert unfinished(store) == []
    assert attempt(store, "e0", NOW + 40) is Claim.DONE
    assert store.take_overdue(now=NOW + 999, overdue_s=0, oldest={("text", 9, 0): None}) == []


def test_a_dead_letter_has_all_that_is_needed_to_understand_it(store: Store) -> None:
    """Payload, attempts, the last error, and the failures of the items one by one."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope("e0", items=2, results=2, payload=b"both inputs")])
    attempt(store, "e0", NOW)
    store.note_failure("e0", worker="w1", error=ERROR)
    attempt(store, "e0", NOW + 10, max_attempts=1)
    malformed = failed(1, error={"kind": "InvalidMessage", "message": "no input"})
    store.commit([failed(0, error=None), malformed], dead=["e0"], at=NOW + 10)

    (letter,) = store.dead_letters.newest()

    assert (letter.id, letter.payload, letter.attempts, letter.worker) == ("e0", b"both inputs", 1, "w1")
    assert (letter.error, letter.state, letter.finished_at) == (ERROR, EnvelopeState.DEAD, NOW + 10)
    first, second = letter.failures
    assert first.error is not None
    assert first.error["message"] == "given up after 1 attempts, the last by w1: broke"
    assert first.error["cause"] == ERROR
    assert second.error == malformed.error
    assert store.dead_letters.newest(job="other") == []


def test_a_dead_letter_shows_failures_only(store: Store) -> None:
    """Of an envelope that had some of its results when it was given up."""
    submit(store, items=3)
    store.commit([result(0), result(2, state=ResultState.CANCELLED, output=None)])
    store.commit([failed(1)], dead=["e0"], at=NOW)

    (letter,) = store.dead_letters.newest()

    assert [row.seq for row in letter.failures] == [1]


def test_a_replay_takes_no_more_than_its_limit(store: Store) -> None:
    """An operator tries a few first; and a transaction over all of them would hold up every worker."""
    ids = [f"e{number}" for number in range(3)]
    submit(store, ids=ids)
    store.commit([failed(n, envelope=id_) for n, id_ in enumerate(ids)], done=ids, at=NOW)

    assert store.dead_letters.replay(limit=2) == Replayed(envelopes=2, results=2)
    assert store.job("job").failed == 1
    assert store.dead_letters.replay(limit=2) == Replayed(envelopes=1, results=1)


def test_a_noted_failure_lets_the_next_attempt_begin_at_once(store: Store) -> None:
    """A worker that is alive to say so need not be waited for like a dead one."""
    submit(store)
    store.claim(["e0"], worker="w1", now=NOW, lease_s=600)

    assert not store.note_failure("e0", worker="w2", error=ERROR)
    assert store.note_failure("e0", worker="w1", error={"kind": "X\0", "message": "\ud800"})
    assert store.renew(["e0"], worker="w1", lease_s=600, now=NOW) == 0

    (taken,) = store.take_overdue(now=NOW + 2, overdue_s=NOW + 2)
    assert (taken.id, taken.attempts) == ("e0", 1)


# --- deaths ---


def test_deaths_alone_never_give_an_envelope_up(store: Store) -> None:
    """A crash loop is the machine's fault: a claim over the lease that ran out counts it, and so does a reconciler."""
    submit(store)

    for n in range(MAX_ATTEMPTS + 10):
        claimed = die(store, "e0", NOW + n * 10)
        assert (claimed.verdict, claimed.alone, claimed.one_by_one) == (Claim.WORK, n >= ALONE_AFTER_DEATHS, False)
        if n % 2:
            (taken,) = store.take_overdue(now=NOW + n * 10 + 5, overdue_s=NOW * 2)
            assert taken.attempts == n + 1
    assert store.running_alone() == (1, "job")

    for _ in range(MAX_ATTEMPTS):
        assert attempt(store, "e0", NOW + 999) is Claim.WORK
        store.note_failure("e0", worker="w1", error=ERROR)
    assert attempt(store, "e0", NOW + 999) is Claim.DEAD
    store.commit([failed(0, error=None)], dead=["e0"])
    assert store.running_alone() == (0, None)


def test_attempts_that_an_older_version_counted_still_end(store: Store) -> None:
    """It counted no deaths, and left no word either."""
    submit(store)
    for n in range(2):
        store.claim(["e0"], worker="w1", now=NOW + n, lease_s=-NOW - n)

    assert attempt(store, "e0", NOW + 20, max_attempts=2) is Claim.DEAD
    store.commit([failed(0, error=None)], dead=["e0"])

    (row,) = store.results("job")
    assert row.error is not None
    assert row.error["message"] == (
        "given up after 2 attempts, the last by w1; the worker died or lost its lease without reporting an error"
    )


def test_a_worker_that_speaks_has_not_died(store: Store) -> None:
    """A stop and a failure have their word; neither leads to a run alone, nor leaves a suspicion behind."""
    submit(store, items=2)
    for n in range(5):
        assert not die(store, "e0", NOW + n).alone
        store.note_suspect("e0", ALL_ITEMS)
        if n % 2:
            store.release(["e0"], worker="w1")
        else:
            store.note_failure("e0", worker="w1", error=ERROR)
            store.take_overdue(now=NOW + n, overdue_s=NOW * 2)
    for n in range(3):
        die(store, "e0", NOW + 10 + 10 * n)
    claimed = die(store, "e0", NOW + 50)
    assert (claimed.alone, claimed.one_by_one) == (True, False)


def test_only_starts_that_ended_in_silence_count_for_a_suspect(store: Store) -> None:
    """The items that are run alone are told apart, and an operator's stop accuses none of them."""
    submit(store, items=2)
    for n in range(3):
        die(store, "e0", NOW + 10 * n)
    assert store.note_suspect("e0", ALL_ITEMS) == 1
    assert die(store, "e0", NOW + 30).one_by_one

    assert [store.note_suspect("e0", seq) for seq in (0, 1)] == [1, 1]
    assert die(store, "e0", NOW + 40).one_by_one
    assert store.note_suspect("e0", 1) == 2
    store.release(["e0"], worker="w1")
    assert die(store, "e0", NOW + 50).one_by_one
    assert store.note_suspect("e0", 1) == 2
    store.note_failure("e0", worker="w1", error=ERROR)
    assert die(store, "e0", NOW + 60).one_by_one
    assert store.note_suspect("e0", 1) == 2
    assert die(store, "e0", NOW + 70).one_by_one
    assert store.note_suspect("e0", 1) == 3
    assert store.note_suspect("gone", 1) == 0


def test_a_stop_does_not_bring_the_limit_nearer(store: Store) -> None:
    """Deployments are not attempts."""
    submit(store)
    for n in range(10):
        assert attempt(store, "e0", NOW + n * 10, max_attempts=2) is Claim.WORK
        store.release(["e0"], worker="w1")


def test_a_cancelled_job_is_cancelled_and_not_given_up(store: Store) -> None:
    """What its submitter asked for goes before what we failed at."""
    submit(store)
    attempt(store, "e0", NOW)
    store.cancel_job("job", NOW)

    assert attempt(store, "e0", NOW + 10, max_attempts=1) is Claim.CANCELLED


def test_work_that_ends_after_all_is_not_overwritten(store: Store) -> None:
    """The worker was only slow: its results were first, so the burial changes nothing, and the other way round."""
    submit(store, 2)
    store.commit([result(0)], done=["e0"])
    store.commit([failed(0, error=None)], dead=["e0"])
    store.commit([failed(1, envelope="e1", error=None)], dead=["e1"])
    store.commit([result(1, envelope="e1")], done=["e1"])

    assert [row.state for row in store.results("job")] == [ResultState.SUCCEEDED, ResultState.FAILED]
    assert [letter.id for letter in store.dead_letters.newest()] == ["e1"]


def test_the_writer_has_the_limit(store: Store) -> None:
    """It is a setting of the worker."""
    submit(store)
    attempt(store, "e0", NOW)
    store.note_failure("e0", worker="w1", error=ERROR)
    with Writer(store, worker="w2", lease_s=60, max_attempts=1) as committer:
        assert committer.claim("e0").verdict is Claim.DEAD
        committer.commit(Transaction(results=[failed(0, error=None)], dead=["e0"]))

    assert store.job("job").failed == 1


# --- replay ---


def test_a_replay_puts_dead_letters_back(store: Store) -> None:
    """Counted as if they had never been tried; the reconciler takes them at its next round."""
    submit(store)
    give_up(store)

    assert store.dead_letters.replay() == Replayed(envelopes=1, results=1)

    status = store.job("job")
    assert (status.failed, status.finished, status.finished_at) == (0, False, None)
    assert store.results("job") == []
    assert store.dead_letters.newest() == []
    (taken,) = store.take_overdue(now=NOW, overdue_s=30)
    assert (taken.id, taken.attempts, taken.payload) == ("e0", 0, b"{}")
    assert attempt(store, "e0", NOW) is Claim.WORK
    store.commit([result(0)], done=["e0"])
    assert (store.job("job").succeeded, store.job("job").finished) == (1, True)


def test_a_replay_forgets_deaths_and_suspects(store: Store) -> None:
    """The fault is mended, says the operator: the envelope runs among others again."""
    submit(store)
    for n in range(4):
        die(store, "e0", NOW + 10 * n)
        store.note_suspect("e0", 0)
    store.commit([failed(0, error={"kind": "WorkerLost", "message": "the worker died"})], done=["e0"])

    assert store.dead_letters.replay(error_kind="WorkerLost") == Replayed(envelopes=1, results=1)

    claimed = die(store, "e0", NOW)
    assert (claimed.verdict, claimed.alone) == (Claim.WORK, False)
    assert store.note_suspect("e0", 0) == 1


def test_a_replay_takes_failures_and_leaves_successes(store: Store) -> None:
    """The envelope is computed as a whole, but a result that a reader may have seen stays."""
    submit(store, items=3)
    store.commit([result(0, output="first"), failed(1), failed(2)], done=["e0"])

    assert store.dead_letters.replay(job="job") == Replayed(envelopes=1, results=2)

    assert attempt(store, "e0", NOW) is Claim.WORK
    store.commit([result(0, output="second"), result(1), failed(2)], done=["e0"])
    assert next((row.output, row.state.value) for row in store.results("job")) == ("first", "succeeded")
    assert (store.job("job").succeeded, store.job("job").failed, store.job("job").finished) == (2, 1, True)


def test_a_replay_chooses_by_job_and_by_error(store: Store) -> None:
    """After a fix, only what it fixes."""
    for job in ("a", "b"):
        store.add_envelopes([new_envelope(f"{job}0", job=job, items=2, results=2)], jobs=[new_job(job)])
        other = {"kind": "InvalidInput", "message": "empty"}
        rows = [failed(0, job=job, envelope=f"{job}0"), failed(1, job=job, envelope=f"{job}0", error=other)]
        store.commit(rows, done=[f"{job}0"])

    assert store.dead_letters.replay(job="a", error_kind="ModelError") == Replayed(envelopes=1, results=1)
    assert store.dead_letters.replay(job="a", error_kind="ModelError") == Replayed()
    assert [(store.job(job).failed, store.job(job).finished) for job in ("a", "b")] == [(1, False), (2, True)]
    assert store.dead_letters.replay(error_kind="InvalidInput") == Replayed(envelopes=1, results=1)
    assert store.job("b").failed == 1


def test_what_would_only_fail_in_another_way_is_left_alone(store: Store) -> None:
    """A failure with its reason is worth more than `expired` or `cancelled`; without its input it is all there is."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope("late", deadline_at=5.0), new_envelope("bare")])
    store.add_envelopes([new_envelope("off", job="off")], jobs=[new_job("off")])
    store.cancel_job("off", NOW)
    rows = [failed(0, envelope="late"), failed(1, envelope="bare"), failed(0, job="off", envelope="off")]
    store.commit(rows, done=["late", "bare", "off"])
    store.retention.purge(finished_before=NOW * 1e9, keep_results=True)

    assert store.dead_letters.replay() == Replayed()
    assert store.job("job").failed == 2


def test_a_replay_of_everything_ends_though_items_fail_again(store: Store) -> None:
    """The loop over portions must not chase what its own replay made fail."""
    ids = [f"e{number}" for number in range(5)]
    submit(store, ids=ids)
    store.commit([failed(n, envelope=id_) for n, id_ in enumerate(ids)], done=ids, at=NOW)

    rounds = 0
    while replayed := store.dead_letters.replay(failed_before=NOW + 1, limit=2).envelopes:
        rounds += replayed
        store.commit([failed(n, envelope=id_) for n, id_ in enumerate(ids)], done=ids, at=NOW + 2)

    assert rounds == 5
    assert store.job("job").failed == 5


def test_a_replay_beside_running_workers_loses_nothing(store: Store, store_url: str) -> None:
    """Late copies commit failures again and again while an operator replays: what is done has its results, always."""
    ids = [f"e{number}" for number in range(6)]
    submit(store, items=3, ids=ids)
    owed = {id_: [failed(3 * n + i, envelope=id_) for i in range(3)] for n, id_ in enumerate(ids)}

    def work(number: int) -> None:
        with Store(store_url) as own:
            for _ in range(12):
                if number == 0:
                    own.dead_letters.replay()
                else:
                    own.commit([row for id_ in ids for row in owed[id_]], done=ids)

    run_together(work, 4)
    store.commit([row for id_ in ids for row in owed[id_]], done=ids)

    status = store.job("job")
    assert status.failed == len(store.results("job")) == status.total == 18
    assert unfinished(store) == []


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_commit_in_the_midst_of_a_replay_waits_for_it(store: Store, store_url: str) -> None:
    """The race that would lose a result: the commit finds it there, the replay deletes it, the commit says done.

    On PostgreSQL; SQLite has one writer at a time.
    """
    submit(store)
    store.commit([failed(0)], done=["e0"])
    committed = threading.Event()

    def commit() -> None:
        with Store(store_url) as own:
            own.commit([failed(0)], done=["e0"])
        committed.set()

    with psycopg.connect(store_url) as other, psycopg.connect(store_url, autocommit=True) as watch:
        other.execute("SELECT id FROM envelopes WHERE id = 'e0' FOR NO KEY UPDATE")
        other.execute("DELETE FROM results")
        other.execute("UPDATE jobs SET failed = 0, finished_at = NULL")
        other.execute("UPDATE envelopes SET state = 'accepted'")
        late = threading.Thread(target=commit)
        late.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while watch.execute(waiting).fetchone() == (0,):
            assert not committed.is_set()
        other.commit()
        late.join()

    assert len(store.results("job")) == store.job("job").failed == 1
    assert store.depth() == []


def test_depth_counts_what_a_replay_put_back(store: Store) -> None:
    """An operator sees at once what is to be done again."""
    submit(store)
    give_up(store)
    store.dead_letters.replay()

    assert store.depth() == [
        Depth(model="text", priority=9, state=EnvelopeState.ACCEPTED, envelopes=1, items=1, results=1, oldest_at=100.0)
    ]
