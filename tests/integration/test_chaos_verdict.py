"""The verdict of the chaos benchmark condemns what it should: a judge that never does proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.disasters.faults import Blow
from benchmarks.disasters.load import scripted_output
from benchmarks.disasters.producer import Entry, Ledger, Plan
from benchmarks.disasters.verdict import Judge, drains_s, recoveries_s
from results_store.records import NewEnvelope, NewJob, Result, ResultState
from results_store.store import Store

PLAN = Plan("plan", ["echo"], ["one", "two", "three"], 1.0)


@pytest.fixture
def judged(sqlite_url: str, tmp_path: Path):
    """Stores answers by place, and returns the verdict on `PLAN`."""
    store = Store(sqlite_url)
    store.migrate()

    def judge(answers: dict[int, str], *entries: Entry, total: int = 3):
        ledger = Ledger(tmp_path / "ledger")
        for entry in entries:
            ledger.note(entry)
        envelope = NewEnvelope(
            id="e", job="job", model="scripted", priority=9, items=total, results=total, payload=b"",
            content_type="application/json", created_at=0,
        )  # fmt: skip
        store.add_envelopes([envelope], jobs=[NewJob(id="job", name="plan", priority=9, created_at=0)])
        store.commit([row(seq, text) for seq, text in answers.items()], done=["e"])
        judge = Judge(store, {})
        judge.submission(PLAN, ledger)
        found = judge.verdict
        return found.lost, found.doubled, found.wrong, found.forgotten

    with store:
        yield judge


def row(seq: int, text: str) -> Result:
    state = ResultState.SUCCEEDED if text else ResultState.FAILED
    return Result(job="job", seq=seq, task="echo", envelope="e", state=state, output=scripted_output(text, "echo"))


RIGHT = dict(enumerate(PLAN.texts))


def test_what_is_right_is_acquitted(judged):
    """Every text once, under its place; a run that went on where the last one stopped."""
    assert judged(RIGHT, Entry(1, 0, 2), Entry(2, 2, 3)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answers", "total", "verdict"),
    [
        ({0: "one", 2: "three"}, 3, (1, 0, 0, 0)),
        ({**RIGHT, 3: "three"}, 4, (0, 1, 0, 0)),
        ({0: "two", 1: "one", 2: "three"}, 3, (0, 0, 2, 0)),
        ({**RIGHT, 1: ""}, 3, (0, 0, 1, 0)),
    ],
    ids=["lost", "doubled", "swapped", "failed"],
)
def test_what_is_wrong_is_condemned(judged, answers, total, verdict):
    """A missing row, a row too many, answers that belong to others, an item that failed for no fault of its own."""
    assert judged(answers, total=total) == verdict


def test_a_broken_promise_is_condemned(judged):
    """A run was told that two items are accepted, and the next found none."""
    assert judged(RIGHT, Entry(1, 0, 1), Entry(1, 0, 2), Entry(2, 0, 3)) == (0, 0, 0, 2)


def test_recovery_is_that_of_the_work_which_a_blow_met():
    """What comes in later and is done at once says nothing of how long the fleet stood still."""
    spans = [(1.0, 2.0), (1.0, 9.0), (1.0, 12.0), (5.5, 6.0)]
    blows = [Blow("worker", 5.0), Blow("worker", 20.0)]
    assert recoveries_s(blows, spans) == {"worker": [4.0]}
    assert drains_s(blows, spans) == [7.0]
