"""What a worker computes and stores of a message: what the store holds, whatever the message says."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from sqlalchemy import select

from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidMessage
from producers.wire.messages import Envelope, InlineBytes, Item, Priority, Reference, new_id
from producers.wire.packing import outbox_row
from results_store.records import Claim, NewJob, Result, ResultState
from results_store.sql.reading import result
from results_store.sql.schema import envelopes, results
from results_store.store import Store
from results_store.writer import Writer
from tests.scripted_model import ScriptedModel
from workers.batching.batcher import Batcher, BatcherSettings
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.device.device_client import ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import cpu
from workers.envelope.execution import Execution, InputsGone
from workers.envelope.gate import Gate
from workers.envelope.input_limits import InputLimits
from workers.models.interface.model import ModelSpec
from workers.node.held_envelopes import HeldEnvelopes

TEXTS = ("one", "two", "three")
ATTEMPTS = 2
FAR = 1e12


class Rig:
    """A worker's execution on a real store and a real device process, without Celery and without a broker."""

    def __init__(self, store: Store) -> None:
        catalogue = Catalogue({}).with_models(
            {"scripted": {"tasks": {"echo": "text-classification"}}}, where="fleet.toml"
        )
        spec = ModelSpec("scripted", Path(), "1", {"echo": catalogue.tasks["echo"]})
        served = {"scripted": ServedModel(ScriptedModel(spec), "1", Budget(cost=100_000, rows=64))}
        self.store = store
        self.writer = Writer(store, worker="w", lease_s=60, max_attempts=ATTEMPTS)
        self.batcher = Batcher(
            served,
            BatcherSettings(worker="w", device="cpu", load_timeout_s=60, batch_timeout_s=30, guaranteed_shares={}),
            on_batch=self.writer.record,
            on_out_of_service=pytest.fail,
        )
        to_load = [ModelToLoad.from_spec("tests.scripted_model:ScriptedModel", spec)]
        self.device = ProcessDevice(cpu(), to_load, self.batcher.tell, threads=1)
        self.held = HeldEnvelopes(store, worker="w", lease_s=60)
        self.execution = Execution(
            offer=CurrentVersions(OfferedVersions(catalogue, served)),
            limits=InputLimits(),
            batcher=self.batcher,
            writer=self.writer,
            database=store,
            gate=Gate(),
        )

    def __enter__(self) -> Self:
        self.writer.start()
        self.batcher.start(self.device)
        self.batcher.came_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.batcher.stop()
        self.writer.close()

    def accept(self, **changes: Any) -> Envelope:
        """Accept three texts, as a client does, and return what the store holds."""
        envelope = made(**changes)
        job = NewJob(id=envelope.job, priority=0, created_at=1.0)
        self.store.add_envelopes([outbox_row(envelope, 0)], jobs=[job])
        return envelope

    def run(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Run a message as a node does."""
        with self.held.taking(str(message.get("id")), str(message.get("job"))) as taken:
            assert taken
            return self.execution.run(dict(message))

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
