"""The verdict of the chaos benchmark condemns what it should: a judge that never does proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy import text as sql

from benchmarks.disasters.faults import Blow
from benchmarks.disasters.load import scripted_output
from benchmarks.disasters.producer import Entry, Ledger, Plan
from benchmarks.disasters.verdict import Judge, alike, drains_s, recoveries_s, stalls_s, tolerance, unshifted
from results_store.export.text_export import stream
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


def test_recovery_from_a_lasting_fault_counts_from_its_end():
    assert recoveries_s([Blow("redis_full", 5.0, 8.0)], [(1.0, 6.0), (1.0, 9.0)]) == {"redis_full": [1.0]}


def test_a_stall_is_the_longest_time_without_a_result_that_was_waited_for():
    """Nothing was waited for between 6 and 30, and what comes after the next blow is its own."""
    spans = [(1.0, 6.0), (30.0, 31.0), (30.0, 34.0), (30.0, 60.0)]
    blows = [Blow("silent_all", 2.0, 5.0), Blow("worker", 40.0)]
    assert stalls_s(blows, spans) == [6.0, 20.0]
    assert stalls_s([Blow("silent_new", 2.0, 61.0)], spans) == [0.0]


def test_the_times_of_a_clock_that_was_hours_off_are_known_again():
    began = 1_000_000.5
    assert [unshifted(began + 30 + hours * 3600, began) for hours in (-1, 0, 1)] == [began + 30] * 3


@pytest.mark.parametrize(
    ("revision", "allowed"),
    [
        (None, 1e-4),
        ("0123abcd", 1e-4),
        ("0123abcd+openvino-bf16", 2e-2),
        ("0123abcd+heads.4567+torch-bf16-compiled", 2e-2),
        ("0123abcd+onnxruntime-int8", 1e-2),
    ],
)
def test_scores_may_differ_by_what_the_backend_of_their_row_rounds(revision, allowed):
    assert tolerance(revision) == allowed


def test_rounding_may_change_scores_but_no_label():
    one = [{"label": "good", "score": 0.501}, {"label": "bad", "score": 0.499}]
    assert alike(one, [{"label": "good", "score": 0.503}, {"label": "bad", "score": 0.497}], 5e-3)
    assert not alike(one, [{"label": "good", "score": 0.503}, {"label": "bad", "score": 0.497}], 1e-4)
    assert not alike(one, [{"label": "bad", "score": 0.501}, {"label": "good", "score": 0.499}], 5e-3)
    assert not alike(one, [{"label": "good", "score": 0.501}], 5e-3)


def test_a_miscount_is_told_with_both_numbers(sqlite_url):
    """A row that goes without its counter: further looks find the same."""
    Store(sqlite_url).migrate()
    with Store(sqlite_url) as store:
        envelope = NewEnvelope(
            id="e", job="job", model="scripted", priority=9, items=3, results=3, payload=b"",
            content_type="application/json", created_at=0,
        )  # fmt: skip
        store.add_envelopes([envelope], jobs=[NewJob(id="job", name="plan", priority=9, created_at=0)])
        store.commit([row(seq, said) for seq, said in RIGHT.items()], done=["e"])
        engine = create_engine(sqlite_url)
        with engine.begin() as connection:
            connection.execute(sql("DELETE FROM results WHERE seq = 1"))
        engine.dispose()
        judge = Judge(store, {})
        judge.submission(PLAN, Ledger(Path("/nowhere")))
    assert judge.verdict.miscounted == 1
    assert any("3 results, 2 rows" in note for note in judge.verdict.notes)


def test_a_row_that_comes_between_two_looks_is_no_miscount(sqlite_url, monkeypatch):
    """The rows are read, then another is stored, then the counters are read."""
    Store(sqlite_url).migrate()
    with Store(sqlite_url) as store:
        envelope = NewEnvelope(
            id="e", job="job", model="scripted", priority=9, items=3, results=3, payload=b"",
            content_type="application/json", created_at=0,
        )  # fmt: skip
        store.add_envelopes([envelope], jobs=[NewJob(id="job", name="plan", priority=9, created_at=0)])
        store.commit([row(seq, RIGHT[seq]) for seq in (0, 1)])

        def read_too_early(store: Store, job: str):
            found = list(stream(store, job))
            store.commit([row(2, RIGHT[2])], done=["e"])
            return found

        monkeypatch.setattr("benchmarks.disasters.verdict.stream", read_too_early)
        judge = Judge(store, {})
        judge.submission(PLAN, Ledger(Path("/nowhere")))
    assert (judge.verdict.miscounted, judge.verdict.looked_again, judge.verdict.lost) == (0, 1, 0)
