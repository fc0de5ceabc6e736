"""What a worker computes and stores of a message: what the store holds, whatever the message says."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from celery import Celery
from celery.exceptions import Reject
from sqlalchemy import select

from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidMessage
from producers.wire.messages import Envelope, InlineBytes, Item, Priority, Reference, new_id
from producers.wire.packing import outbox_row
from producers.wire.publisher import DURABLE
from producers.wire.queues import TASK
from producers.wire.validation.struct_types import build_struct_types
from results_store.errors import StoreUnavailable
from results_store.records import Batch, Claim, NewJob, Result, ResultState
from results_store.sql.reading import result
from results_store.sql.schema import envelopes, results
from results_store.store import Store
from results_store.writer import Writer
from tests.block_model import BlockModel
from tests.counting_model import CountingModel
from tests.end_to_end.processes import until
from tests.file_model import FileModel
from tests.integration.sqlite_outage import away
from tests.scripted_model import ScriptedModel
from workers.batching.batcher import Batcher, BatcherSettings
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.consumer import tasks
from workers.device.device_client import ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import cpu
from workers.envelope.execution import Execution, InputsGone
from workers.envelope.gate import EnvelopeInterrupted, Gate
from workers.envelope.input_limits import InputLimits
from workers.models.interface.model import ModelSpec
from workers.node.held_envelopes import HeldEnvelopes
from workers.retries import RetrySettings

TEXTS = ("one", "two", "three")
ATTEMPTS = 2
FAR = 1e12


class Rig:
    """A worker's execution on a real store and a real device process, without Celery and without a broker.

    A batch of the scripted model has at most `rows` rows. `limits` are those of inputs.
    """

    def __init__(
        self,
        store: Store,
        rows: int = 64,
        *,
        limits: InputLimits = InputLimits(),  # noqa: B008 - frozen
        retries: RetrySettings = RetrySettings(),  # noqa: B008 - frozen
    ) -> None:
        catalogue = Catalogue({}).with_models(
            {
                "scripted": {
                    "tasks": {
                        "echo": "text-classification",
                        "say": "text-classification",
                        "place": "feature-extraction",
                    }
                },
                "counting": {"tasks": {"count": "text-classification"}},
                "file": {"tasks": {"sum": "image-classification"}},
            },
            where="fleet.toml",
        )
        scripted = {name: catalogue.tasks[name] for name in ("echo", "say", "place")}
        spec = ModelSpec("scripted", Path(), "1", scripted)
        stepwise = ModelSpec("counting", Path(), "1", {"count": catalogue.tasks["count"]})
        file = ModelSpec("file", Path(), "1", {"sum": catalogue.tasks["sum"]})
        served = {
            "file": ServedModel(FileModel(file), "1", Budget(cost=100, rows=64)),
            "scripted": ServedModel(BlockModel(spec), "1", Budget(cost=100_000, rows=rows)),
            "counting": ServedModel(CountingModel(stepwise), "1", Budget(cost=100, rows=64)),
        }
        self.store = store
        self.writer = Writer(store, worker="w", lease_s=60, max_attempts=ATTEMPTS)
        self.batcher = Batcher(
            served,
            BatcherSettings(worker="w", device="cpu", load_timeout_s=60, batch_timeout_s=30, guaranteed_shares={}),
            on_batch=self._record,
            on_out_of_service=pytest.fail,
        )
        self.batches: list[Batch] = []
        to_load = [
            ModelToLoad.from_spec("tests.block_model:BlockModel", spec),
            ModelToLoad.from_spec("tests.counting_model:CountingModel", stepwise),
            ModelToLoad.from_spec("tests.file_model:FileModel", file),
        ]
        self.device = ProcessDevice(cpu(), to_load, self.batcher.tell, threads=1)
        self.held = HeldEnvelopes(store, worker="w", lease_s=60)
        self.execution = Execution(
            offer=CurrentVersions(OfferedVersions(catalogue, served)),
            limits=limits,
            retries=retries,
            batcher=self.batcher,
            writer=self.writer,
            urgent_writer=self.writer,
            database=store,
            gate=Gate(),
        )

    def __enter__(self) -> Self:
        build_struct_types()  # as a worker does before its threads read messages
        self.writer.start()
        self.batcher.start(self.device)
        self.batcher.came_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.batcher.stop()
        self.writer.close()

    def accept(self, *, in_columns: bool = False, **changes: Any) -> Envelope:
        """Accept three texts, as a client does, and return what the store holds."""
        envelope = made(**changes)
        job = NewJob(id=envelope.job, priority=0, created_at=1.0)
        self.store.add_envelopes([outbox_row(envelope, 0, in_columns=in_columns)], jobs=[job])
        return envelope

    def _record(self, batch: Batch) -> None:
        self.writer.record(batch)
        self.batches.append(batch)

    def run(self, message: Mapping[str, Any], *, reply: bool = False, returned: int = 0) -> dict[str, Any]:
        """Run a message as a node does."""
        with self.held.taking(str(message.get("id")), str(message.get("job")), returned=returned) as held:
            if held is None:
                return {"skipped": "held"}
            return self.execution.run(dict(message), reply=reply, on_submit=partial(self.held.submitted, held))

    def begin(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Run a message in a thread of its own, as in a slot."""
        outcome: Future[dict[str, Any]] = Future()

        def run() -> None:
            try:
                outcome.set_result(self.run(message))
            except Exception as error:  # noqa: BLE001 - raised by `result`
                outcome.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return outcome

    def drain(self, grace_s: float) -> None:
        """Stop as a node does."""
        self.held.wait_until_none(grace_s)
        self.execution.gate.close()
        self.batcher.stop()

    def row(self, envelope: Envelope) -> Any:
        with self.store._database.read() as connection:
            wanted = select(envelopes).where(envelopes.c.id == envelope.id)
            return connection.execute(wanted).mappings().one()

    def everything(self) -> dict[tuple[str, int, str], Result]:
        """Every result of the store, by its key."""
        with self.store._database.read() as connection:
            rows = [result(row) for row in connection.execute(select(results)).mappings()]
        return {(row.job, row.seq, row.task): row for row in rows}


@pytest.fixture
def rig(store: Store) -> Iterator[Rig]:
    with Rig(store) as rig:
        yield rig


def made(**changes: Any) -> Envelope:
    whole = Envelope(
        version=1,
        id=new_id(),
        job=new_id(),
        model="scripted",
        priority=Priority.INTERACTIVE,
        queued_at=1.0,
        items=tuple(Item(seq, text, ("echo",), key=text) for seq, text in enumerate(TEXTS)),
    )
    return msgspec.structs.replace(whole, **changes)


def reference(envelope: Envelope, **changes: Any) -> dict[str, Any]:
    """Return the message that names an envelope."""
    named = Reference(id=envelope.id, job=envelope.job, model=envelope.model, priority=int(envelope.priority))
    return {**msgspec.to_builtins(named), **changes}


def whole(envelope: Envelope, **changes: Any) -> dict[str, Any]:
    """Return the message that carries an envelope, as older producers send it."""
    return {**msgspec.to_builtins(envelope), **changes}


def items(*given: tuple[int, str]) -> list[dict[str, Any]]:
    return [{"seq": seq, "input": text, "tasks": ["echo"]} for seq, text in given]


def assert_computed(rig: Rig, envelope: Envelope) -> None:
    """The envelope is done, and the store has its results and no others."""
    assert {key: row.output["crc"] for key, row in rig.everything().items()} == {
        (envelope.job, seq, "echo"): zlib.crc32(text.encode()) for seq, text in enumerate(TEXTS)
    }
    row = rig.row(envelope)
    assert (row["state"], row["stored"], row["error"]) == ("done", 3, None)
    status = rig.store.job(envelope.job)
    assert (status.total, status.succeeded, status.finished) == (3, 3, True)


def test_an_answer_that_no_database_holds_costs_only_its_item(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours would be attempted with it again and again, and given up with it."""
    odd = {zlib.crc32(b"two"): {float("nan"): 1}, zlib.crc32(b"three"): {"digits": 10**5000}}
    monkeypatch.setattr(ScriptedModel, "finish", lambda _, task, output, *__: odd.get(int(output[0]), "right"))
    envelope = rig.accept()
    assert rig.run(reference(envelope)) == {"items": 3, "succeeded": 1, "failed": 2}
    first, *others = (rig.everything()[envelope.job, seq, "echo"] for seq in range(3))
    assert (first.output, rig.row(envelope)["state"]) == ("right", "done")
    for row in others:
        assert row.error is not None
        assert row.error["message"].startswith("cannot be stored: its answer: not a JSON value: ")


ALTERED: dict[str, dict[str, Any]] = {
    "a text": {"items": items((0, "one"), (1, "twp"), (2, "three"))},
    "an item fewer": {"items": items((0, "one"), (2, "three"))},
    "no item": {"items": []},
    "a place": {"items": items((0, "one"), (1, "two"), (66, "three"))},
    "two equal places": {"items": items((0, "one"), (0, "two"), (2, "three"))},
    "no list of items": {"items": "three of them"},
    "the job": {"job": "0" * 26},
    "the model": {"model": "text"},
    "the priority": {"priority": 4},
    "the version": {"version": 3},
    "the deadline": {"deadline_at": 0.5},
    "the tenant and the pipeline": {"tenant": "other", "pipeline": True},
}


@pytest.mark.parametrize("altered", ALTERED)
@pytest.mark.parametrize("form", [whole, reference])
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_the_stored_envelope_is_computed_whatever_the_message_says(rig: Rig, form: Any, altered: str) -> None:
    """Memory, disks and networks flip bits, and anybody may write to Redis: it says which envelope, and no more."""
    envelope = rig.accept()
    assert rig.run(form(envelope, **ALTERED[altered]))["succeeded"] == 3
    assert_computed(rig, envelope)


def test_a_message_in_either_form_is_computed_once(rig: Rig) -> None:
    """A producer of the version before sends the whole envelope, and its reconciler too."""
    envelope = rig.accept()
    assert rig.run(whole(envelope)) == {"items": 3, "succeeded": 3}
    assert rig.run(reference(envelope)) == {"skipped": "done"}
    assert rig.run(whole(envelope, items=items((7, "late")))) == {"skipped": "done"}
    assert_computed(rig, envelope)


def test_bytes_come_from_the_store_as_they_are(rig: Rig) -> None:
    """Their envelope is stored as MessagePack; the model refuses them by name, as it did."""
    envelope = rig.accept(items=(Item(0, InlineBytes(b"\xff\x00"), ("echo",)),))
    assert rig.run(reference(envelope)) == {"items": 1, "failed": 1}
    [row] = rig.store.results(envelope.job)
    assert row.error is not None
    assert row.error["kind"] == "InvalidInput"


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        (reference, {"id": "0" * 26}),
        (whole, {"id": "0" * 26}),
        (whole, {"id": "0" * 26, "items": items((0, "forged"))}),
        (reference, {"id": 7}),
        (whole, {"id": None}),
    ],
)
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_an_altered_id_is_refused_and_stores_nothing(rig: Rig, form: Any, changes: dict[str, Any]) -> None:
    """The store knows the job and not the envelope. The real message comes again, from the reconciler."""
    envelope = rig.accept()
    with pytest.raises(InvalidMessage):
        rig.run(form(envelope, **changes))
    assert rig.everything() == {}
    rig.run(reference(envelope))
    assert_computed(rig, envelope)


def test_a_foreign_message_is_computed_from_its_body(rig: Rig) -> None:
    """Another Celery application knows no outbox; nor does an item that is not durable."""
    foreign, direct = made(), made(durable=False)
    assert rig.run(whole(foreign))["succeeded"] == 3
    rig.store.create_job(NewJob(id=direct.job, priority=0, created_at=1.0))
    assert rig.run(whole(direct))["succeeded"] == 3
    assert {job for job, _, _ in rig.everything()} == {foreign.job, direct.job}
    assert rig.store.job(direct.job).total == 3
    assert rig.store.retention.purge(now=1e10).results == 3, "of the foreign message, whose job the store does not know"


def test_deleted_inputs_fail_the_attempt_by_name(rig: Rig) -> None:
    """The message still has them, but it is no source of truth: somebody wanted them deleted."""
    envelope = rig.accept()
    others = {"job": envelope.job, "task": "echo", "envelope": "x", "state": ResultState.CANCELLED}
    rows = [Result(**{**others, "seq": seq}) for seq in range(3)]
    rig.store.commit(rows)
    rig.store.retention.purge(finished_before=FAR, keep_results=True)
    with pytest.raises(InputsGone, match=f"envelope {envelope.id}: its inputs are no longer stored"):
        rig.run(whole(envelope))
    row = rig.row(envelope)
    assert (row["attempts"], row["error"]["kind"]) == (1, "InputsGone")

    [overdue] = rig.store.take_overdue(overdue_s=FAR)
    assert (overdue.id, overdue.payload) == (envelope.id, b"")
    for _ in range(ATTEMPTS - 1):
        with pytest.raises(InputsGone):
            rig.run(reference(envelope))
    assert rig.run(reference(envelope)) == {"items": 0, "dead": 0}
    assert rig.row(envelope)["state"] == "dead"


@pytest.mark.parametrize("version", [0, 2, 99])
def test_an_envelope_of_another_version_is_given_up_by_name(rig: Rig, version: int) -> None:
    """A newer producer stored it: each attempt counts, and in the end its items say why they failed."""
    envelope = rig.accept(version=version)
    for attempt in range(ATTEMPTS):
        with pytest.raises(InvalidMessage, match=f"envelope version {version} is not supported by this worker"):
            rig.run(reference(envelope))
        row = rig.row(envelope)
        assert (row["attempts"], row["error"]["kind"]) == (attempt + 1, "InvalidMessage")
        [overdue] = rig.store.take_overdue(overdue_s=FAR)
        assert overdue.id == envelope.id
        rig.store.mark_published([envelope.id], 1.0)

    assert rig.run(reference(envelope)) == {"items": 3, "dead": 3}

    [letter] = rig.store.dead_letters.newest()
    assert (letter.id, letter.attempts) == (envelope.id, ATTEMPTS)
    assert [(row.seq, row.key) for row in letter.failures] == list(enumerate(TEXTS))
    assert letter.failures[0].error is not None
    assert f"envelope version {version} is not supported" in letter.failures[0].error["message"]
    assert rig.store.job(envelope.job).finished
    assert rig.execution.writer.claim(envelope.id).verdict is Claim.DONE


def test_a_model_that_is_not_served_here_is_an_error_of_the_attempt(rig: Rig) -> None:
    """The message stood in another model's queue: the reconciler puts it where it belongs."""
    envelope = rig.accept(model="elsewhere")
    with pytest.raises(InvalidMessage, match="model 'elsewhere' is not served here"):
        rig.run(reference(envelope, model="scripted"))
    assert rig.row(envelope)["error"]["kind"] == "InvalidMessage"
    [overdue] = rig.store.take_overdue(overdue_s=FAR)
    assert (overdue.id, overdue.model) == (envelope.id, "elsewhere")


@pytest.mark.parametrize("payload", [b"\xff", b"[]", b'{"version": 1}', b'{"items": [{}]}'])
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_damaged_envelope_comes_to_an_end(rig: Rig, payload: bytes, *, cancelled: bool) -> None:
    """Not even its items can be named: it is given up, and goes round no longer."""
    damaged = made()
    row = outbox_row(damaged, 0)
    job = NewJob(id=damaged.job, priority=0, created_at=1.0)
    rig.store.add_envelopes([replace(row, payload=payload)], jobs=[job])
    if cancelled:
        rig.store.cancel_job(damaged.job, 1.0)
    else:
        for _ in range(ATTEMPTS):
            with pytest.raises(InvalidMessage):
                rig.run(reference(damaged))
    rig.run(reference(damaged))
    assert rig.row(damaged)["state"] == "dead"
    assert len(rig.store.dead_letters.newest()) == 1


def test_a_cancelled_envelope_is_cancelled_as_it_is_stored(rig: Rig) -> None:
    """All that was submitted gets its result, also what the message left out."""
    envelope = rig.accept()
    rig.store.cancel_job(envelope.job, 1.0)
    assert rig.run(whole(envelope, items=items((0, "one")))) == {"items": 3, "cancelled": 3}
    assert rig.row(envelope)["state"] == "done"
    assert rig.store.job(envelope.job).state == "cancelled"


# --- outcomes of items ---


def texts(*given: str) -> tuple[Item, ...]:
    return tuple(Item(seq, text, ("echo",), key=f"row-{seq}") for seq, text in enumerate(given))


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_each_item_ends_in_its_own_way(rig: Rig) -> None:
    """A refused input, a bug of the model's code, and a failed pass fail their own item, each by its name."""
    envelope = rig.accept(items=texts("one", "refuse", "bug", "raise", "two"))
    assert rig.run(reference(envelope)) == {"items": 5, "succeeded": 2, "failed": 3}
    first, refused, bug, raised, last = rig.store.results(envelope.job)
    kinds = [(row.error or {}).get("kind") for row in (first, refused, bug, raised, last)]
    assert kinds == [None, "InvalidInput", "ModelError", "ModelError", None]
    assert "scripted to raise" in raised.error["traceback"]  # type: ignore[index]
    assert [first.output["crc"], last.output["crc"]] == [zlib.crc32(b"one"), zlib.crc32(b"two")]
    for seq, row in enumerate((first, refused, bug, raised, last)):
        assert (row.seq, row.key, row.model, row.queued_at) == (seq, f"row-{seq}", "scripted", 1.0)
        assert (row.tokens, row.model_revision) == ((3, "1") if row.output else (None, None))
    assert {first.batch, last.batch} <= {batch.id for batch in rig.batches}
    assert raised.batch is not None
    assert first.batched_at is not None
    assert first.computed_at is not None
    assert first.batched_at <= first.computed_at <= time.time()
    assert rig.row(envelope)["state"] == "done"


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_caller_that_wants_a_reply_gets_the_results_with_it(rig: Rig) -> None:
    envelope = rig.accept()
    told = rig.run(reference(envelope), reply=True)
    assert [(row["seq"], row["output"]["crc"]) for row in told.pop("results")] == [
        (seq, zlib.crc32(text.encode())) for seq, text in enumerate(TEXTS)
    ]
    assert told == {"items": 3, "succeeded": 3}


@pytest.mark.parametrize("durable", [True, False])
def test_a_deadline_that_has_passed_ends_the_items_uncomputed(rig: Rig, *, durable: bool) -> None:
    now = time.time()
    late, in_time = (made(durable=durable, queued_at=now, deadline_at=now + after_s) for after_s in (-1.0, 600.0))
    for envelope, ends in ((late, "expired"), (in_time, "succeeded")):
        job = NewJob(id=envelope.job, priority=0, created_at=1.0)
        if durable:
            rig.store.add_envelopes([outbox_row(envelope, 0)], jobs=[job])
        else:
            rig.store.create_job(job)
        assert rig.run(whole(envelope)) == {"items": 3, ends: 3}
        assert rig.store.job(envelope.job).finished
    assert sum(batch.items for batch in rig.batches) == 3


# --- cancellations ---


def counting(*steps: int) -> tuple[Item, ...]:
    return tuple(Item(seq, str(count), ("count",)) for seq, count in enumerate(steps))


def cancel_item(rig: Rig, envelope: Envelope, seq: int) -> None:
    """Cancel an item as its handle does."""
    row = Result(job=envelope.job, seq=seq, task="count", envelope=envelope.id, state=ResultState.CANCELLED)
    rig.store.commit([row])


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_cancelled_item_stops_stepping(rig: Rig) -> None:
    """The device works for nobody otherwise, for as long as the item is long."""
    envelope = rig.accept(model="counting", items=counting(10**9, 10**9 + 1, 3))
    outcome = rig.begin(reference(envelope))
    until(lambda: rig.batcher.stepping == [(envelope.job, 0), (envelope.job, 1)])
    rig.held.drop_cancelled(rig.batcher)
    cancel_item(rig, envelope, 0)
    rig.held.drop_cancelled(rig.batcher)
    until(lambda: rig.batcher.stepping == [(envelope.job, 1)])
    rig.store.cancel_job(envelope.job)
    rig.held.drop_cancelled(rig.batcher)
    assert outcome.result(60) == {"items": 3, "cancelled": 2, "succeeded": 1}
    assert not rig.batcher.stepping


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_items_of_a_cancelled_job_do_not_wait_for_the_device(store: Store, tmp_path: Path) -> None:
    """The others go on."""
    held = tmp_path / "held"
    with Rig(store, rows=1) as rig:
        running, others, cancelled = rig.accept(items=texts(f"hold {held}")), rig.accept(), rig.accept()
        outcomes = [rig.begin(reference(running))]
        until(held.exists)
        outcomes.append(rig.begin(reference(others)))
        until(lambda: len(rig.batcher._feeder.work._given) == 2)  # so that no batch of the other one is staged
        outcomes.append(rig.begin(reference(cancelled)))
        until(lambda: rig.row(cancelled)["state"] == "published")
        rig.store.cancel_job(cancelled.job)
        # the claimed envelope may not have reached the batcher yet
        until(lambda: rig.held.drop_cancelled(rig.batcher) or outcomes[2].done())
        assert outcomes[2].result(60) == {"items": 3, "cancelled": 3}
        assert not outcomes[0].done()
        assert not outcomes[1].done()
        held.unlink()
        assert [outcome.result(60)["succeeded"] for outcome in outcomes[:2]] == [1, 3]


# --- versions ---


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_items_that_wait_for_an_older_version_are_prepared_again(store: Store, tmp_path: Path) -> None:
    """Those that the device has already end with the version they were prepared for, and say so."""
    held = tmp_path / "held"
    with Rig(store, rows=1) as rig:
        running, waiting = rig.accept(items=texts(f"hold {held}")), rig.accept()
        outcomes = [rig.begin(reference(running))]
        until(held.exists)
        outcomes.append(rig.begin(reference(waiting)))
        until(lambda: len(rig.batcher._feeder.work._given) == 2)
        offer = rig.execution.offer
        older = offer.now.models["scripted"]
        spec = replace(older.model.spec, revision="2")
        newer = replace(older, model=ScriptedModel(spec), revision="2", generation=1)
        admitted = rig.batcher.admit(newer, ModelToLoad.from_spec("tests.scripted_model:ScriptedModel", spec))
        offer.now = replace(offer.now, models={**offer.now.models, "scripted": newer})
        retired = rig.batcher.retire(older.key)
        held.unlink()
        assert [outcome.result(60)["succeeded"] for outcome in outcomes] == [1, 3]
        assert [row.model_revision for row in rig.store.results(running.job)] == ["1"]
        assert [row.model_revision for row in rig.store.results(waiting.job)] == ["1", "2", "2"]
        assert (admitted.result(60), retired.result(60)) == (None, None)
        assert rig.run(reference(rig.accept())) == {"items": 3, "succeeded": 3}


# --- leases and stops ---


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_an_envelope_is_leased_while_it_runs(rig: Rig, tmp_path: Path) -> None:
    """A second copy of its message is not run, its lease is renewed, and a worker that ends at once gives it up."""
    held = tmp_path / "held"
    envelope = rig.accept(items=texts(f"hold {held}"))
    outcome = rig.begin(reference(envelope))
    until(held.exists)
    assert rig.run(reference(envelope)) == {"skipped": "held"}
    leased_until = rig.row(envelope)["leased_until"]
    rig.held.renew_leases()
    assert rig.row(envelope)["leased_until"] > leased_until
    assert rig.store.take_overdue(overdue_s=FAR) == []
    rig.held.give_up_leases()
    [overdue] = until(lambda: rig.store.take_overdue(overdue_s=FAR))
    assert (overdue.id, rig.row(envelope)["deaths"]) == (envelope.id, 1)
    held.unlink()
    assert outcome.result(60) == {"items": 1, "succeeded": 1}
    rig.held.wait_until_none(60)
    assert rig.run(reference(envelope)) == {"skipped": "done"}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_stop_gives_the_message_back_to_its_queue(rig: Rig, *, durable: bool) -> None:
    """Of an item that is not durable, the message is all there is; a durable one need not wait for the reconciler."""
    envelope = rig.accept() if durable else made(durable=False)
    app = Celery(set_as_current=False)
    tasks.register(app, rig)  # type: ignore[arg-type]
    rig.execution.gate.close()
    with pytest.raises(Reject) as stopped:
        app.tasks[TASK](whole(envelope))
    assert stopped.value.requeue
    assert rig.everything() == {}
    if durable:
        row = rig.row(envelope)
        assert (row["worker"], row["leased_until"], row["attempts"], row["error"]) == (None, None, 0, None)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_stop_while_the_database_is_away_gives_the_message_back(
    rig: Rig, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    """Of an item that is not durable, the message is all there is: the stop does not wait until its results can be
    stored, so they are computed again. A durable envelope has its row.
    """
    monkeypatch.setattr(tasks, "PAUSE_S", 0.0)
    held = tmp_path / "held"
    envelope = made(durable=durable, items=texts(f"hold {held}"))
    if durable:
        rig.accept(id=envelope.id, job=envelope.job, items=envelope.items)
    app = Celery(set_as_current=False)
    tasks.register(app, rig)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as slot:
        slot.submit(app.tasks[TASK].push_request, **{DURABLE: durable})
        ended = slot.submit(app.tasks[TASK].run, whole(envelope))
        until(held.exists)
        rig.writer.give_up()
        with away(store_url):
            held.unlink()
            error = ended.exception(60)
    assert isinstance(error, StoreUnavailable if durable else Reject)
    assert not isinstance(error, Reject) or error.requeue
    assert rig.everything() == {}


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_lease_that_cannot_be_released_keeps_no_message(rig: Rig, store_url: str) -> None:
    """It expires; the message goes back to its queue nevertheless."""
    app = Celery(set_as_current=False)
    tasks.register(app, rig)  # type: ignore[arg-type]
    rig.execution.gate.close()
    with away(store_url), pytest.raises(Reject) as stopped:
        app.tasks[TASK](whole(made(durable=False)))
    assert stopped.value.requeue


def test_an_envelope_is_given_back_while_its_device_stalls(store: Store, tmp_path: Path) -> None:
    """What is computed is kept, the lease is given up once, and only the next attempt counts. The worker goes on."""
    held = tmp_path / "held"
    with Rig(store, rows=1) as rig:
        envelope = rig.accept(items=texts("one", f"hold {held}", "two", "three"), priority=Priority.BULK)
        outcome = rig.begin(reference(envelope))
        until(lambda: held.exists() and rig.batches)
        (mine,) = rig.held.now()
        assert mine.may_return
        assert mine.left.rows == 3
        rig.held.give_back(mine, rig.batcher)
        assert isinstance(outcome.exception(60), EnvelopeInterrupted)
        assert held.exists()
        row = rig.row(envelope)
        assert (row["state"], row["stored"], row["attempts"], row["worker"]) == ("published", 1, 0, None)
        other = rig.begin(reference(envelope))
        held.unlink()
        until(lambda: held.exists() or other.done())
        held.unlink(missing_ok=True)
        assert other.result(60) == {"items": 4, "succeeded": 4}
        row = rig.row(envelope)
        assert (row["state"], row["stored"], row["attempts"], row["deaths"]) == ("done", 4, 1, 0)
        assert store.job(envelope.job).succeeded == 4


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_stop_does_not_wait_for_a_long_item(store: Store, tmp_path: Path) -> None:
    """Finished results are kept; the rest runs in another worker, and only that attempt counts."""
    held = tmp_path / "held"
    with Rig(store, rows=1) as first:
        envelope = first.accept(items=texts("one", f"hold {held}"))
        outcome = first.begin(reference(envelope))
        until(lambda: held.exists() and first.batches)
        first.drain(grace_s=0.01)
        assert isinstance(outcome.exception(60), EnvelopeInterrupted)
        assert held.exists()
        assert [seq for _, seq, _ in first.everything()] == [0]
        row = first.row(envelope)
        assert (row["state"], row["stored"], row["attempts"], row["leased_until"]) == ("published", 1, 0, None)
    held.unlink()
    with Rig(store) as second:
        outcome = second.begin(reference(envelope))
        until(held.exists)
        held.unlink()
        assert outcome.result(60) == {"items": 2, "succeeded": 2}
        row = second.row(envelope)
        assert (row["state"], row["stored"], row["attempts"]) == ("done", 2, 1)
        assert second.store.job(envelope.job).succeeded == 2
