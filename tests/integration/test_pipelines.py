"""Pipelines in the store, on both databases: what follows is accepted with what it follows from, once, whoever
stores it how often.
"""

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import select

from producers import InvalidInput, Pipeline
from producers.client.pipelines.pipeline import first_request
from producers.client.sending.intake import Intake
from producers.client.sending.orders import Order, envelopes_of
from producers.wire.catalogue import KINDS, Catalogue, Task
from producers.wire.errors import InputUnavailable
from producers.wire.messages import (
    DerivedInput,
    Envelope,
    InlineBytes,
    Item,
    Message,
    MessagesInput,
    decode,
    decode_bytes,
)
from producers.wire.packing import outbox_row
from producers.wire.pipelines.following import follow
from producers.wire.pipelines.plan import Plan
from results_store.records import Claim, Committed, NewEnvelope, NewJob, Result, ResultState, Transaction
from results_store.sql.item_numbering import TREE_SPAN, tree_number
from results_store.sql.schema import envelopes, payloads
from results_store.store import Store
from tests.integration.rows import run_together
from workers.envelope.derivation import Derivation
from workers.envelope.input_limits import InputLimits

TASKS = {
    "sentiment": "text-classification",
    "topic": "text-classification",
    "things": "object-detection",
    "animal": "image-classification",
    "find": "passage-retrieval",
    "chat": "text-generation",
}
CATALOGUE = Catalogue({name: Task(name, KINDS[kind], "m", "") for name, kind in TASKS.items()})
JOB = "0" * 26
LABEL = [{"label": "cat", "score": 0.9}]

#: Two steps that read the input, and one that joins them.
JOINED = (
    Pipeline()
    .step("mood", task="sentiment")
    .step("about", task="topic")
    .step("both", task="sentiment", of=["mood", "about"])
)
ANSWERED = Pipeline().step("found", task="find")
ANSWERED.step(
    "answer", task="chat", of="found", take="prompt", options={"template": "{texts} Q: {input}", "min_score": 0.5}
)
CROPPED = Pipeline().step("things", task="things").step("animal", task="animal", of="things", options={"margin": 0.5})


class Work:
    """A job that is a pipeline, as a client accepts it and workers store it."""

    def __init__(self, store: Store, pipeline: Pipeline, inputs: list[object], **more: Any) -> None:
        self.store = store
        self.plan: Plan = pipeline.check(CATALOGUE)
        request = first_request(CATALOGUE, self.plan, priority="standard", deadline_s=None)
        intake = Intake(request, span=TREE_SPAN)
        items = [item for value in inputs if (item := intake.take(value)) is not None]
        deadline_at = more.pop("deadline_at", None)
        order = Order(request, items, JOB, Future(), deadline_at=deadline_at, tenant="acme", pipeline=True)
        job = NewJob(id=JOB, priority=3, created_at=1.0, tenant="acme", pipeline=self.plan.as_json(), **more)
        lane = store.tenants.enrol("acme").lane
        self.sent = [outbox_row(envelope, lane) for envelope in envelopes_of([order], 1.0, 1.0)]
        store.add_envelopes(self.sent, jobs=[job])

    def store_results(self, envelope: NewEnvelope, **changes: Any) -> Committed:
        """Store what a worker computes of an envelope: each task of each item."""
        rows = [self.row(item, task, envelope, **changes) for item in read(envelope).items for task in item.tasks]
        return self.commit(rows, envelope)

    def row(self, item: Item, task: str, envelope: NewEnvelope, **changes: Any) -> Result:
        given = {"state": ResultState.SUCCEEDED, "output": LABEL, "key": item.key, **changes}
        return Result(job=JOB, seq=item.seq, task=task, envelope=envelope.id, **given)

    def commit(self, rows: list[Result], envelope: NewEnvelope, *, dead: bool = False) -> Committed:
        ended = {"dead" if dead else "done": [envelope.id]}
        return self.store.transact(Transaction(results=rows, stepped=[envelope.id], **ended), follow)

    def outbox(self) -> dict[str, NewEnvelope]:
        """Every envelope of the job, by its id."""
        with self.store._database.read() as connection:
            joined = select(envelopes, payloads).join(payloads).where(envelopes.c.job == JOB)
            names = set(NewEnvelope.__slots__) - {"deadline_s"}
            rows = connection.execute(joined).mappings()
            return {row["id"]: NewEnvelope(**{name: row[name] for name in names}) for row in rows}


def read(envelope: NewEnvelope) -> Envelope:
    decoded, bad = decode(decode_bytes(envelope.payload, envelope.content_type))
    assert not bad
    return decoded


def test_what_follows_is_accepted_with_what_it_follows_from(store: Store) -> None:
    """It has the priority, the lane, the tenant, the deadline and the key of what it is made of; the job owes more."""
    work = Work(store, JOINED, ["one", "two"], deadline_at=61.0)
    source = work.outbox()[work.sent[0].id]
    assert (source.created_at, source.deadline_at) == (pytest.approx(store.now(), abs=600), source.created_at + 60)
    [new] = work.store_results(work.sent[0], key="k").followed
    assert work.outbox()[new.id] == new
    lane = store.tenants.enrol("acme").lane
    assert (new.priority, new.lane, new.deadline_at, new.model) == (3, lane, source.deadline_at, "m")
    envelope = read(new)
    assert (envelope.pipeline, envelope.tenant, envelope.job) == (True, "acme", JOB)
    assert [(item.seq, item.tasks, item.key) for item in envelope.items] == [
        (tree_number(root, (), 3), ("sentiment",), "k") for root in (0, 1)
    ]
    status = store.job(JOB)
    assert (status.items, status.total, status.succeeded, status.finished) == (2, 6, 4, False)
    assert work.store_results(new).followed == ()
    status = store.job(JOB)
    assert (status.total, status.finished, status.finished_at is None) == (6, True, False)


def test_a_redelivery_adds_nothing(store: Store) -> None:
    """The same results stored again, by another worker that computed the envelope as well: neither rows nor
    envelopes.
    """
    work = Work(store, JOINED, ["one"])
    assert len(work.store_results(work.sent[0]).followed) == 1
    again = work.store_results(work.sent[0])
    assert (again.inserted, again.followed) == (0, ())
    assert (len(work.outbox()), store.job(JOB).total) == (2, 3)


def test_workers_that_store_the_two_halves_at_once_make_the_whole_due_once(store: Store) -> None:
    """Neither may think that the other will: they meet at the job's row. Each half comes twice, too."""
    work = Work(store, JOINED, [f"text {number}" for number in range(20)])
    [envelope] = work.sent
    items = read(envelope).items
    followed: list[NewEnvelope] = []

    def half(number: int) -> None:
        for item in items:
            row = work.row(item, ("sentiment", "topic")[number % 2], envelope)
            followed.extend(work.commit([row], envelope).followed)

    run_together(half, 4)
    assert sorted(item.seq for one in followed for item in read(one).items) == [
        tree_number(root, (), 3) for root in range(20)
    ]
    assert len(work.outbox()) == 1 + len(followed)
    assert store.job(JOB).total == 60


def test_a_failure_holds_up_its_own_tree_until_it_is_replayed(store: Store) -> None:
    work = Work(store, JOINED, ["one", "two"])
    [envelope] = work.sent
    rows = [work.row(item, task, envelope) for item in read(envelope).items for task in item.tasks]
    error = {"kind": "ModelError", "message": "no"}
    broken = Result(job=JOB, seq=0, task="topic", envelope=envelope.id, state=ResultState.FAILED, error=error)
    kept = [row for row in rows if (row.seq, row.task) != (0, "topic")]
    [new] = work.commit([*kept, broken], envelope).followed
    assert [item.seq for item in read(new).items] == [tree_number(1, (), 3)]
    work.store_results(new)
    status = store.job(JOB)
    assert (status.total, status.failed, status.finished) == (5, 1, True)

    assert store.dead_letters.replay(job=JOB).envelopes == 1
    assert not store.job(JOB).finished
    [late] = work.store_results(envelope).followed
    assert [item.seq for item in read(late).items] == [tree_number(0, (), 3)]
    assert store.job(JOB).total == 6


def test_a_cancelled_job_goes_no_further(store: Store) -> None:
    """What is computed already is stored, and what would follow is not begun: the job is over when the rest is."""
    work = Work(store, JOINED, ["one"])
    store.cancel_job(JOB)
    assert work.store_results(work.sent[0]).followed == ()
    assert store.job(JOB).finished


def test_a_dead_envelope_is_not_followed(store: Store) -> None:
    work = Work(store, JOINED, ["one"])
    [envelope] = work.sent
    [item] = read(envelope).items
    rows = [work.row(item, task, envelope, state=ResultState.FAILED, output=None) for task in item.tasks]
    assert work.commit(rows, envelope, dead=True).followed == ()
    [letter] = store.dead_letters.newest(job=JOB)
    assert len(letter.failures) == 2
    assert letter.failures[0].error is not None


def test_what_was_not_published_is_overdue_like_anything_else(store: Store) -> None:
    """A worker that dies between its commit and the push leaves the rest to the reconciler."""
    work = Work(store, JOINED, ["one"])
    store.mark_published([work.sent[0].id])
    [new] = work.store_results(work.sent[0]).followed
    [overdue] = store.take_overdue(now=store.now() + 100, overdue_s=50)
    assert (overdue.id, overdue.payload, overdue.lane) == (new.id, new.payload, new.lane)
    claims = store.claim([new.id], worker="w", lease_s=60)
    assert claims[new.id].verdict is Claim.WORK


def test_inputs_that_later_steps_need_are_dropped_at_the_end(store: Store) -> None:
    """`drop_inputs` deletes what no replay could want; a step to come may want it all the same, so it waits for the
    last.
    """
    work = Work(store, JOINED, ["one"])
    [envelope] = work.sent
    [item] = read(envelope).items
    rows = [work.row(item, task, envelope) for task in item.tasks]
    ended = Transaction(results=rows, done=[envelope.id], stepped=[envelope.id], drop_inputs=True)
    committed = store.transact(ended, follow)
    assert store.retention.drop_inputs_of_pipelines() == 0
    assert store.inputs([envelope.id])
    work.store_results(committed.followed[0])
    assert store.retention.drop_inputs_of_pipelines() == 2
    assert not work.outbox()


def test_inputs_that_a_replay_could_want_stay(store: Store) -> None:
    work = Work(store, JOINED, ["one"])
    work.store_results(work.sent[0], state=ResultState.FAILED, output=None, error={"kind": "ModelError"})
    assert store.job(JOB).finished
    assert store.retention.drop_inputs_of_pipelines() == 0


# --- inputs made of results ---


def picture() -> tuple[Image.Image, bytes]:
    """Four quarters of different colours, 40 by 20."""
    image = Image.new("RGB", (40, 20), "red")
    for corner, colour in (((20, 0), "green"), ((0, 10), "blue"), ((20, 10), "white")):
        image.paste(colour, (*corner, corner[0] + 20, corner[1] + 10))
    file = io.BytesIO()
    image.save(file, "PNG")
    return image, file.getvalue()


def detected(*corners: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    names = ("xmin", "ymin", "xmax", "ymax")
    return [{"label": "q", "score": 0.9, "box": dict(zip(names, one, strict=True))} for one in corners]


def test_crops_are_made_of_the_image_that_was_sent(store: Store) -> None:
    """The stored image and the stored box, with its margin, within the image: nothing in between is kept anywhere."""
    image, sent = picture()
    work = Work(store, CROPPED, [sent])
    output = detected((0, 0, 20, 10), (30, 12, 50, 30), (7, 7, 7, 7))
    [new] = work.store_results(work.sent[0], output=output).followed
    items = read(new).items
    derivation = Derivation(store, InputLimits(), JOB)
    derivation.gather(items)
    for item, frame in zip(items, [(0, 0, 30, 15), (20, 3, 40, 20)], strict=False):
        made = derivation.input(item.input)
        assert isinstance(made, InlineBytes)
        with Image.open(io.BytesIO(made.data)) as cut:
            assert cut.size == (frame[2] - frame[0], frame[3] - frame[1])
            assert cut.convert("RGB").tobytes() == image.crop(frame).tobytes()
    with pytest.raises(InvalidInput, match="empty box"):
        derivation.input(items[2].input)


def test_a_prompt_is_made_of_the_stored_question_and_what_was_found(store: Store) -> None:
    """Where nothing is near enough there is no next step."""
    work = Work(store, ANSWERED, ["How long?"])
    near, far = {"text": "Three days.", "score": 0.9}, {"text": "Red.", "score": 0.2}
    [new] = work.store_results(work.sent[0], output=[near, far]).followed
    derivation = Derivation(store, InputLimits(), JOB)
    [item] = read(new).items
    derivation.gather([item])
    assert derivation.input(item.input) == MessagesInput((Message("user", "[1] Three days. Q: How long?"),))


def test_nothing_follows_what_is_not_near_enough(store: Store) -> None:
    work = Work(store, ANSWERED, ["How long?"])
    assert not work.store_results(work.sent[0], output=[{"text": "Red.", "score": 0.2}]).followed
    assert store.job(JOB).finished


def test_what_is_not_kept_any_more_is_said_to_be_gone(store: Store) -> None:
    work = Work(store, CROPPED, [picture()[1]])
    [new] = work.store_results(work.sent[0], output=detected((0, 0, 20, 10))).followed
    [item] = read(new).items
    store.retention.purge(finished_before=1e12, keep_results=True)
    work.store_results(new)
    store.retention.purge(finished_before=1e12, keep_results=True)
    with pytest.raises(InputUnavailable, match="no longer stored"):
        Derivation(store, InputLimits(), JOB).input(item.input)
    store.retention.purge(finished_before=1e12)
    with pytest.raises(InputUnavailable, match="no longer stored"):
        Derivation(store, InputLimits(), JOB).input(item.input)


@pytest.mark.parametrize(
    "made",
    [
        DerivedInput("pickle", ((0, "things"),)),
        DerivedInput("crop", ()),
        DerivedInput("crop", ((0, "things"),), 7),
        DerivedInput("crop", ((0, "things"),), 0, {"margin": 9}),
        DerivedInput("each", ((0, "things"),), 7),
        DerivedInput("prompt", ((0, "things"),), None, {"template": "{texts} {input}"}),
        DerivedInput("prompt", ((0, "things"),), None, {"template": "none"}),
    ],
)
def test_a_forged_derivation_fails_as_an_input(store: Store, made: DerivedInput) -> None:
    """A message that somebody put on Redis by hand costs its own item, with an error that says what is wrong."""
    work = Work(store, CROPPED, [picture()[1]])
    work.store_results(work.sent[0], output=detected((0, 0, 20, 10)))
    with pytest.raises(InvalidInput):
        Derivation(store, InputLimits(), JOB).input(made)
