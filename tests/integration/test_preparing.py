"""Who computes at once in the worker's own process: bulk in turns, wherever its inputs lie; interactive items at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.messages import Envelope, InlineBytes, Input, Item, PathInput, Priority, UrlInput
from results_store.store import Store
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving.offered_versions import CurrentOffer, Offer
from workers.envelope.inputs import InputLimits
from workers.envelope.preparation import Preparation, PreparedItem
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Prepared

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

    def finish(self, task: Any, output: Array, params: msgspec.Struct) -> Any:
        raise NotImplementedError("nothing is computed here")

    def load(self, device: str) -> None:
        raise NotImplementedError("nothing is computed here")

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        raise NotImplementedError("nothing is computed here")


class Rig:
    """One turn in all. `server_saw` is whether it was to be had while a host was asked for a file."""

    def __init__(self, store: Store, folder: Path, host: str) -> None:
        self.turns = threading.Semaphore(1)
        self.server_saw: list[bool] = []
        (folder / "file").write_bytes(b"bytes")
        catalogue = Catalogue({}).with_models({"eyes": {"tasks": {"see": "image-classification"}}}, where="fleet.toml")
        self.model = Looks(ModelSpec("eyes", folder, "1", {"see": catalogue.tasks["see"]}), self.look)
        limits = InputLimits(
            allowed_roots=(str(folder),), allowed_hosts=(f"http://{host}",), allow_private_addresses=True
        )
        served = {"eyes": ServedModel(self.model, "1", Budget(8, 8))}
        offer = CurrentOffer(Offer(catalogue, served))
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
        item = Item(0, self.inputs[origin], ("see",))
        envelope = Envelope(
            version=1, id="envelope", job=JOB, model="eyes", priority=priority, queued_at=time.time(), items=(item,)
        )
        turn = self.preparation.turn(envelope)
        derivation = self.preparation.derivation(JOB, envelope.items, turn)
        with turn:
            return self.preparation.prepare_item(envelope, item, derivation)


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
