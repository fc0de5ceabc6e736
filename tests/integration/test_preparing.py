"""Who computes at once in the worker's own process: bulk in turns, wherever its inputs lie; interactive items at any
time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.messages import Envelope, InlineBytes, Input, Item, PathInput, Priority, UrlInput
from results_store.store import Store
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.batching.work import Computed
from workers.envelope.input_limits import InputLimits
from workers.envelope.preparation import Preparation, PreparedItem
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Params, Prepared

JOB = "job"


class Looks(Model):
    """Notes of each item, while it is prepared, whether a turn is to be had."""

    def __init__(self, spec: ModelSpec, look: Callable[[], bool]) -> None:
        super().__init__(spec)
        self.look = look
        self.free: list[bool] = []

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        assert content == b"bytes"
        self.free.append(self.look())
        return Prepared({}, 1, b"")

    def finish(self, task: Any, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        raise NotImplementedError("nothing is computed here")

    def load(self, device: str) -> None:
        raise NotImplementedError("nothing is computed here")

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        raise NotImplementedError("nothing is computed here")


class Together(Looks):
    """Prepares and finishes many at once, and notes how many."""

    def __init__(self, spec: ModelSpec, look: Callable[[], bool]) -> None:
        super().__init__(spec, look)
        self.together: list[int] = []
        self.returns = 0

    def prepare_many(self, contents: Sequence[Any], params: Sequence[Params]) -> list[Prepared | Exception]:
        self.together.append(len(contents))
        rows: list[Prepared | Exception] = [
            Prepared({}, 1, b"") if content == b"bytes" else ValueError("no such bytes") for content in contents
        ]
        return rows[self.returns :]

    def finish_many(self, task: Any, outputs: Any, params: Any, prepared: Any) -> list[Any]:
        self.together.append(len(outputs))
        answers = [ValueError("no answer") if output < 0 else [int(output)] for output in outputs]
        return answers[self.returns :]


class Rig:
    """One turn in all. `server_saw` is whether it was to be had while a host was asked for a file."""

    def __init__(self, store: Store, folder: Path, host: str, model: type[Looks] = Looks) -> None:
        self.turns = threading.Semaphore(1)
        self.server_saw: list[bool] = []
        (folder / "file").write_bytes(b"bytes")
        catalogue = Catalogue({}).with_models({"eyes": {"tasks": {"see": "image-classification"}}}, where="fleet.toml")
        self.model = model(ModelSpec("eyes", folder, "1", {"see": catalogue.tasks["see"]}), self.look)
        limits = InputLimits(
            allowed_roots=(str(folder),), allowed_hosts=(f"http://{host}",), allow_private_addresses=True
        )
        served = {"eyes": ServedModel(self.model, "1", Budget(8, 8))}
        offer = CurrentVersions(OfferedVersions(catalogue, served))
        self.preparation = Preparation(offer=offer, limits=limits, database=store, turns=self.turns)
        self.inputs: dict[str, Input] = {
            "inline": InlineBytes(b"bytes"),
            "file": PathInput("file"),
            "url": UrlInput(f"http://{host}/file"),
        }

    def look(self) -> bool:
        free = self.turns.acquire(blocking=False)
        if free:
            self.turns.release()
        return free

    def prepare(self, origin: str, priority: Priority) -> PreparedItem:
        """Prepare an envelope of one item, as an execution does."""
        [step] = self.steps(self.envelope([self.inputs[origin]], priority))
        return step

    def envelope(self, inputs: Sequence[Input], priority: Priority = Priority.BULK) -> Envelope:
        items = tuple(Item(seq, value, ("see",)) for seq, value in enumerate(inputs))
        return Envelope(
            version=1, id="envelope", job=JOB, model="eyes", priority=priority, queued_at=time.time(), items=items
        )

    def steps(self, envelope: Envelope) -> list[PreparedItem]:
        turn = self.preparation.turn(envelope)
        derivation = self.preparation.derivation(JOB, envelope.items, turn)
        with turn:
            return self.preparation.prepare_items(envelope, envelope.items, derivation)


@pytest.fixture
def rig(store: Store, tmp_path: Path) -> Iterator[Rig]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            rig.server_saw.append(rig.look())
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"bytes")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        rig = Rig(store, tmp_path, f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield rig
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("origin", ["inline", "file", "url"])
def test_bulk_is_prepared_in_turns_wherever_its_inputs_lie(rig: Rig, origin: str) -> None:
    """A decoded recording takes gigabytes of memory with sixty others, whether it came in the message or by a URL."""
    rig.prepare(origin, Priority.BULK)
    assert rig.model.free == [False]
    assert rig.look(), "a turn ends"


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_no_turn_is_held_while_the_network_is_waited_for(rig: Rig) -> None:
    """A host that answers slowly keeps nobody from computing."""
    rig.prepare("url", Priority.BULK)
    assert rig.server_saw == [True]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("origin", ["inline", "file", "url"])
def test_an_interactive_item_waits_for_no_turn(rig: Rig, origin: str) -> None:
    """All turns are taken by others, and it is prepared."""
    with rig.turns:
        rig.prepare(origin, Priority.INTERACTIVE)
    assert rig.model.free == [False], "prepared meanwhile"


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_turn_ends_with_an_input_that_cannot_be_read(rig: Rig) -> None:
    """What fails while the turn is given back neither loses it nor keeps it."""
    rig.inputs["gone"] = PathInput("gone")
    [result] = rig.prepare("gone", Priority.BULK).results
    assert result.error
    assert "not a file that the worker may read" in result.error["message"]
    assert rig.look()


@pytest.fixture
def together(store: Store, tmp_path: Path) -> Rig:
    return Rig(store, tmp_path, "127.0.0.1", Together)


def noted(rig: Rig) -> list[int]:
    assert isinstance(rig.model, Together)
    return rig.model.together


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_an_envelopes_items_are_prepared_and_finished_together(together: Rig) -> None:
    """A model that does many at once faster than one by one gets them all; what is wrong with one stays with it."""
    envelope = together.envelope([InlineBytes(data) for data in (b"bytes", b"other", b"bytes", b"bytes")])
    steps = together.steps(envelope)
    assert noted(together) == [4]
    [refused] = steps[1].results
    assert refused.error == {"kind": "ModelError", "message": "preparation failed: ValueError: no such bytes"}
    for step, output in zip(steps, (7, None, -1, 9), strict=True):
        if step.entry:
            step.entry.finish(Computed({"see": np.array(output)}, "batch", 0.0, 0.0))
    results = together.preparation.finish_items(envelope, steps)
    assert noted(together) == [4, 3]
    assert [(row.seq, row.output) for row in results] == [(0, [7]), (1, None), (2, None), (3, [9])]
    assert results[2].error == {"kind": "ModelError", "message": "finishing failed: ValueError: no answer"}


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_too_few_of_many_fail_them_all(together: Rig) -> None:
    """Nobody knows which item a row is of: a result must not move to a neighbour."""
    assert isinstance(together.model, Together)
    together.model.returns = 1
    envelope = together.envelope([InlineBytes(b"bytes")] * 3)
    errors = [row.error for step in together.steps(envelope) for row in step.results]
    assert [error and error["message"] for error in errors] == [
        "preparation failed: ValueError: Together.prepare_many returned 2 for 3"
    ] * 3


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_large_contents_are_prepared_in_portions(together: Rig) -> None:
    """Sixty videos that an envelope names by URL are not in memory at once."""
    together.preparation = replace(together.preparation, portion_bytes=9)
    together.steps(together.envelope([InlineBytes(b"bytes")] * 5))
    assert noted(together) == [2, 2, 1]
