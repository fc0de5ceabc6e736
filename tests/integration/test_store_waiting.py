"""What waits for its time or for the end of a pause: one mechanism, by the store's clock, without a message."""

from __future__ import annotations

from typing import Any

import pytest

from results_store.records import Claim, Claimed, PostponedResult, Postponement, ResultState, Transaction
from results_store.sql.schema import envelopes
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result, submit

NOW = 1_000.0
AGAIN = PostponedResult(seq=1, task="topic", tries=1, since=NOW, due_at=NOW + 10)
PAUSED = PostponedResult(seq=2, task="spam", tries=0, since=NOW, due_at=None)


def claim(store: Store, id_: str = "e0", *, now: float = NOW, worker: str = "w1") -> Claimed:
    return store.claim([id_], worker=worker, now=now, lease_s=60)[id_]


def overdue(store: Store, now: float) -> list[str]:
    return [envelope.id for envelope in store.take_overdue(now=now, overdue_s=30)]


def postpone(store: Store, *results: PostponedResult, worker: str = "w1", **fields: Any) -> None:
    stored = [result(0, "topic")]
    left = Postponement(results, error={"kind": "InputUnavailable", "message": "away"}, **fields)
    store.transact(Transaction(results=stored, postponed={"e0": left}, worker=worker, at=NOW))


def row(store_url: str, id_: str = "e0") -> dict[str, Any]:
    with Store(store_url) as store, store._database.read() as connection:
        return dict(connection.execute(envelopes.select().where(envelopes.c.id == id_)).mappings().one())


def test_an_envelope_waits_for_its_time_without_a_lease(store: Store) -> None:
    """Nobody computes it earlier, whatever copies of its message come; then one reconciler publishes it."""
    submit(store, items=3)
    assert claim(store).verdict is Claim.WORK

    postpone(store, AGAIN)

    assert store.job("job").succeeded == 1, "its neighbours are stored at once"
    assert store.retried_work() is None, "by the store's own clock its time has come long ago"
    assert claim(store, now=NOW + 9, worker="w2").verdict is Claim.WAITING
    assert overdue(store, NOW + 9.9) == []
    assert overdue(store, NOW + 10) == ["e0"]
    assert overdue(store, NOW + 10.1) == [], "another reconciler takes it no second time"
    claimed = claim(store, now=NOW + 11, worker="w2")
    assert (claimed.verdict, list(claimed.postponed)) == (Claim.WORK, [AGAIN])


def test_waiting_is_neither_a_failure_nor_a_death(store: Store, store_url: str) -> None:
    """However often an envelope waits, it is never given up for that, nor run alone."""
    submit(store, items=3)
    for turn in range(25):
        assert claim(store, now=NOW + 100 * turn).verdict is Claim.WORK
        postpone(store, AGAIN._replace(due_at=NOW + 100 * turn + 50))
        assert overdue(store, NOW + 100 * turn + 60) == ["e0"]

    assert (row(store_url)["attempts"], row(store_url)["deaths"]) == (0, 0)


def test_the_end_of_an_envelope_clears_what_waited(store: Store, store_url: str) -> None:
    """A replay then computes its failed results again, as if for the first time."""
    submit(store, items=2)
    claim(store)
    postpone(store, AGAIN)
    overdue(store, NOW + 10)
    claim(store, now=NOW + 11)

    store.commit([result(1, "topic", state=ResultState.FAILED, error={"kind": "X"})], done=["e0"], at=NOW + 12)

    assert store.job("job").finished
    assert (row(store_url)["waits"], row(store_url)["due_at"], row(store_url)["state"]) == (None, None, "done")
    assert store.dead_letters.replay().results == 1
    assert list(claim(store, now=NOW + 13).postponed) == [PostponedResult(1, "topic", 0, 0.0, None)]


def test_a_worker_that_lost_its_lease_postpones_nothing(store: Store) -> None:
    """The worker that has the envelope now would lose its lease to it."""
    submit(store, items=3)
    claim(store, worker="w1")
    assert overdue(store, NOW + 61) == ["e0"]
    assert claim(store, now=NOW + 62, worker="w2").verdict is Claim.WORK

    postpone(store, AGAIN, worker="w1")

    assert claim(store, now=NOW + 63, worker="w3").verdict is Claim.HELD


def test_a_cancelled_job_waits_no_longer(store: Store) -> None:
    """Its waiter hears of the cancellation within seconds."""
    submit(store, items=3)
    claim(store)
    postpone(store, AGAIN._replace(due_at=NOW + 500))

    store.cancel_job("job", at=NOW + 1)

    assert overdue(store, NOW + 2) == ["e0"]
    assert claim(store, now=NOW + 3).verdict is Claim.CANCELLED


@pytest.mark.parametrize(
    ("left", "paused_by"), [(PAUSED, "task:spam"), (AGAIN._replace(due_at=NOW + 500), None)], ids=["paused", "retried"]
)
def test_an_attempt_of_a_cancelled_job_postpones_nothing(
    store: Store, left: PostponedResult, paused_by: str | None
) -> None:
    """The attempt was under way when the job was cancelled. Envelopes of other jobs wait on."""
    store.add_envelopes([new_envelope("other", job="other")], jobs=[new_job("other")])
    submit(store, items=3)
    store.pauses.pause("task", "spam")
    for id_ in ("e0", "other"):
        claim(store, id_)
    store.cancel_job("job", at=NOW + 1)

    postpone(store, left, paused_by=paused_by)
    waiting = Postponement([PAUSED], paused_by="task:spam")
    store.transact(Transaction(postponed={"other": waiting}, worker="w1", at=NOW))

    assert overdue(store, NOW + 2) == ["e0"]
    assert overdue(store, NOW + 2) == []
    assert claim(store, now=NOW + 3).verdict is Claim.CANCELLED


@pytest.mark.parametrize(("kind", "name"), [("model", "text"), ("tenant", "acme")])
def test_nothing_of_a_paused_model_or_tenant_is_claimed(store: Store, kind: Any, name: str) -> None:
    """The pause is read in the claim's transaction, and what was paused comes back at its end without a message."""
    store.create_job(new_job(tenant="acme"))
    store.add_envelopes([new_envelope("e0")])
    assert store.pauses.pause(kind, name, "bad labels")

    assert claim(store).verdict is Claim.WAITING
    assert [pause.waiting for pause in store.pauses.every()] == [1]
    assert overdue(store, NOW + 1e6) == [], "it does not come up again and again"
    assert store.pauses.resume(kind, name)
    assert not store.pauses.resume(kind, name)
    assert overdue(store, NOW + 1e6) == ["e0"]
    assert claim(store, now=NOW + 1e6).verdict is Claim.WORK


def test_other_models_and_tenants_go_on(store: Store) -> None:
    """A name that begins alike, and the tenant without a name, are others."""
    submit(store)
    for kind, name in (("model", "tex"), ("model", "text2"), ("tenant", "text"), ("task", "text")):
        store.pauses.pause(kind, name)  # type: ignore[arg-type]  # of a tuple

    assert claim(store).verdict is Claim.WORK


def test_the_pauses_around_another_keep_their_envelopes(store: Store) -> None:
    """The end of one pause wakes no envelope of another, whichever name sorts first."""
    models = ("a", "b", "Ä", "z", "text-é", "text e")
    store.create_job(new_job())
    store.add_envelopes([new_envelope(f"e{number}", model=model) for number, model in enumerate(models)])
    for number, model in enumerate(models):
        store.pauses.pause("model", model)
        assert claim(store, f"e{number}").verdict is Claim.WAITING

    for number, model in enumerate(models):
        store.pauses.resume("model", model)
        assert overdue(store, NOW + 1e6) == [f"e{number}"]


def test_a_deadline_runs_on_while_its_model_is_paused(store: Store) -> None:
    """The worker that claims it then stores `expired`."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope("e0", deadline_at=NOW + 50)])
    store.pauses.pause("model", "text")
    assert claim(store).verdict is Claim.WAITING

    assert overdue(store, NOW + 49) == []
    assert overdue(store, NOW + 50) == ["e0"]
    assert claim(store, now=NOW + 50.5).verdict is Claim.WORK


def test_a_claim_names_the_paused_tasks(store: Store) -> None:
    """Items of an envelope may have several tasks; the others are computed."""
    submit(store, items=3)
    store.pauses.pause("task", "spam")
    store.pauses.pause("task", "to pic")

    claimed = claim(store)

    assert (claimed.verdict, set(claimed.paused_tasks)) == (Claim.WORK, {"spam", "to pic"})
    postpone(store, PAUSED, AGAIN, paused_by="task:spam")
    assert overdue(store, NOW + 10) == ["e0"], "what is tried again does not wait for the pause"
    assert set(claim(store, now=NOW + 11).postponed) == {PAUSED, AGAIN}
    postpone(store, PAUSED, paused_by="task:spam")
    assert overdue(store, NOW + 1e6) == []
    store.pauses.resume("task", "spam")
    assert overdue(store, NOW + 1e6) == ["e0"]


def test_what_waits_is_counted_apart(store: Store) -> None:
    """It neither looks stuck, nor asks for workers, nor keeps the fleet's producers out. What is resumed does again."""
    store.create_job(new_job(created_at=None))
    store.add_envelopes(
        [new_envelope(f"e{number}", model=model, created_at=None) for number, model in enumerate("abc")]
    )
    store.mark_published(["e0", "e1", "e2"])
    store.pauses.pause("model", "a")
    claims = store.claim(["e0", "e1"], worker="w1", lease_s=60)
    assert [claimed.verdict for claimed in claims.values()] == [Claim.WAITING, Claim.WORK]
    left = Postponement([AGAIN._replace(due_at=claims["e1"].now + 1000)])
    store.transact(Transaction(postponed={"e1": left}, worker="w1"))

    _, demand = store.figures.demand()
    assert [(one.paused, one.paused_items, one.postponed) for one in demand] == [(1, 1, 0), (0, 0, 1), (0, 0, 0)]
    assert [one.unclaimed_since is not None for one in demand] == [False, False, True]
    assert [(work.model, work.waiting) for work in store.backlog()] == [("a", 0), ("b", 0), ("c", 1)]
    assert [work.model for work in store.flight.queued_work()] == ["b", "c"]

    store.pauses.resume("model", "a")
    _, demand = store.figures.demand()
    assert (demand[0].paused, demand[0].unclaimed_since is not None) == (0, True)
    assert [work.model for work in store.flight.queued_work()] == ["a", "b", "c"]


def test_what_is_tried_again_says_why(store: Store) -> None:
    """Otherwise a job would stand still for minutes without a word."""
    submit(store, 2)
    claims = store.claim(["e0", "e1"], worker="w1", lease_s=60)
    assert store.retried_work("job") is None
    left = [
        Postponement([AGAIN._replace(due_at=claims["e0"].now + after_s)], error={"kind": "X", "message": "away"})
        for after_s in (500, 1000)
    ]
    store.transact(Transaction(postponed=dict(zip(("e0", "e1"), left, strict=True)), worker="w1"))
    found = store.retried_work("job")
    assert found is not None
    assert (found.envelopes, found.due_at, str(found)) == (
        2, left[0].due_at, "results of 2 envelopes are tried again: away"
    )  # fmt: skip
    assert (store.retried_work(), store.retried_work("another")) == (found, None)
