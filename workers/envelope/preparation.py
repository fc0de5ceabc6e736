"""Items before and after their micro-batch: the inputs are checked and prepared, the outputs finished."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput, without_text
from producers.wire.forms import is_text
from producers.wire.messages import Envelope, InlineBytes, Input, Item, JsonInput, Priority, TextAndImageInput
from producers.wire.result_files import ResultFiles
from results_store.errors import StoreUnavailable
from results_store.loops.loop import note
from results_store.records import Result, ResultState
from results_store.store import Store
from workers.batching.block_batches import BlockEntry
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.roster import ServedModel
from workers.batching.serving import served_explainers
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.batching.steady_clock import steady_time
from workers.batching.work import Entry
from workers.device.devices import available_cores
from workers.envelope import outcomes
from workers.envelope.block_results import BlockRun, may_have_block
from workers.envelope.derivation import Derivation
from workers.envelope.gate import EnvelopeInterrupted
from workers.envelope.input_limits import InputLimits
from workers.envelope.inputs import Content, carried, read
from workers.envelope.outcomes import Params
from workers.envelope.preparation_turns import STEP_LIMIT_S, PreparationTurn
from workers.envelope.streams import Streams
from workers.models.decoding.decoder_pool import DecoderPool
from workers.models.decoding.isolation import DecodingInterrupted, DecodingPlace, decoding_at
from workers.models.interface import returned
from workers.models.interface.class_calls import ClassCalls
from workers.models.interface.model import Model

logger = logging.getLogger(__name__)

#: The most seconds to read an input or to write a result's file, since its storage has long timeouts.
STORAGE_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class PreparedItem:
    """An item after preparation.

    `results` are the results that it already has. `entry` waits for the other tasks; `served` is the version of the
    model that prepared it.
    """

    item: Item
    results: list[Result]
    entry: Entry | None = None
    params: Params = field(default_factory=dict)
    served: ServedModel | None = None


@dataclass(frozen=True, slots=True)
class _Ready:
    """A checked item with its content, for the model that prepares it."""

    item: Item
    served: ServedModel
    content: Content | Any
    params: Params
    refused: Mapping[str, InvalidInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The parent process's side of the models served here. Thread-safe.

    Items of an envelope are prepared together until their contents hold `portion_bytes`, so that the files read for
    them are not all in memory at once. Without `decoders`, files are decoded in this process.
    """

    offer: CurrentVersions
    limits: InputLimits
    database: Store
    streams: Streams | None = None
    files: ResultFiles | None = None
    calls: ClassCalls = field(default_factory=lambda: ClassCalls(STEP_LIMIT_S))
    decoders: DecoderPool | None = None
    portion_bytes: int = 8 * 2**20
    turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(max(1, available_cores() // 2)))

    def fetch_inputs(self, envelope: Envelope) -> Derivation:
        """Read the earlier results from which the envelope's inputs derive, all at once. Raises StoreUnavailable."""
        return self.derivation(envelope.job, envelope.items, self.turn(envelope))

    def prepare_block(self, envelope: Envelope, inputs: Derivation) -> BlockRun | None:
        """Prepare the envelope's items together, in its turn, if they may form a block and their model makes one."""
        if not self.database.stores_chunks or not may_have_block(envelope):
            return None
        with inputs.turn:
            note("preparing a block", STEP_LIMIT_S)
            try:
                return self._block(envelope)
            except Exception as error:  # noqa: BLE001 - the items show which of them is at fault
                where = without_text(error)
                logger.warning("envelope %s: its items are prepared one by one: %s", envelope.id, where)
                return None

    def _block(self, envelope: Envelope) -> BlockRun | None:
        offer, first, now = self.offer.now, envelope.items[0], steady_time()
        params, refused = _params(offer, envelope, first)
        plain = all(task.kind.modality == "text" and not task.kind.makes_files for task in params)
        texts = [item.input for item in envelope.items if type(item.input) is str]
        most = self.limits.max_text_chars
        usable = all(len(text) <= most and is_text(text, offer.catalogue.limits) for text in texts)
        late = envelope.deadline_at is not None and envelope.deadline_at <= now
        if refused or not plain or not usable or late:
            return None
        served = offer.models[served_explainers.way(offer.models, envelope.model, params.values())]
        own = {task.name: chosen for task, chosen in params.items()}
        block = self.calls.call(served.model, "prepare_block", served.model.prepare_block, texts, own)
        if isinstance(block, Exception):
            raise block
        if block is None or not len(block.sizes):
            return None
        waiting = Waiting(
            served.key, int(envelope.priority), 0, now, deadline_at=envelope.deadline_at, tenant=envelope.tenant
        )
        seqs = [item.seq for item in envelope.items]
        entry = BlockEntry.of(block, seqs, tuple(own), waiting, job=envelope.job)
        return BlockRun(envelope, served, params, block, entry)

    def prepare(
        self, envelope: Envelope, inputs: Derivation, items: Sequence[Item] | None = None
    ) -> list[PreparedItem]:
        """Check and prepare the envelope's items, or some of them, in its turn. Raises StoreUnavailable."""
        with inputs.turn:
            return self.prepare_items(envelope, envelope.items if items is None else items, inputs)

    def prepare_items(self, envelope: Envelope, items: Sequence[Item], derivation: Derivation) -> list[PreparedItem]:
        """Check and prepare items. The error of an item is in its results.

        Raises StoreUnavailable, and EnvelopeInterrupted if the worker stops while a file is decoded.
        """
        try:
            with decoding_at(self._place(envelope, derivation.turn)):
                return self._prepared_items(envelope, items, derivation)
        except DecodingInterrupted as error:
            raise EnvelopeInterrupted(f"envelope {envelope.id}: this worker stops while a file is decoded") from error

    def _place(self, envelope: Envelope, turn: PreparationTurn) -> DecodingPlace | None:
        """Return the place at which the envelope's files are decoded; None for this process."""
        if self.decoders is None:
            return None
        return DecodingPlace(self.decoders, (int(envelope.priority), envelope.tenant), turn)

    def _prepared_items(self, envelope: Envelope, items: Sequence[Item], derivation: Derivation) -> list[PreparedItem]:
        prepared: dict[int, PreparedItem] = {}
        portion: dict[int, _Ready] = {}
        held_bytes = 0
        for place, item in enumerate(items):
            note("reading an input", STORAGE_LIMIT_S)
            ready = self._ready(envelope, item, derivation)
            if isinstance(ready, PreparedItem):
                prepared[place] = ready
                continue
            portion[place] = ready
            held_bytes += _size_bytes(ready.content)
            if held_bytes > self.portion_bytes:
                prepared |= self._prepared(envelope, portion, derivation.turn)
                portion, held_bytes = {}, 0
        prepared |= self._prepared(envelope, portion, derivation.turn)
        return [prepared[place] for place in range(len(items))]

    def _ready(self, envelope: Envelope, item: Item, derivation: Derivation) -> _Ready | PreparedItem:
        """Check and read an item. Returns a PreparedItem if it has ended already: failed or expired."""
        if envelope.deadline_at is not None and envelope.deadline_at <= steady_time():
            return PreparedItem(item, outcomes.ended(envelope, item, ResultState.EXPIRED))
        offer = self.offer.now
        try:
            params, refused = _params(offer, envelope, item)
            if not params:
                return PreparedItem(item, _refusals(envelope, item, refused))
            served = offer.models[served_explainers.way(offer.models, envelope.model, params.values())]
            content = self._read(offer, next(iter(params)), derivation.input(item.input), derivation)
            if isinstance(content, JsonInput):
                content = _typed(content, served.model)
            return _Ready(item, served, content, params, refused)
        except StoreUnavailable:  # no fault of the item: the envelope is attempted again
            raise
        except Exception as error:  # noqa: BLE001 - a bug in a model fails this item only
            return _failed(envelope, item, error)

    def _prepared(
        self, envelope: Envelope, portion: Mapping[int, _Ready], turn: PreparationTurn
    ) -> dict[int, PreparedItem]:
        """Return the prepared items by their places. Each model prepares its own items together."""
        note("preparing items", STEP_LIMIT_S)
        prepared: dict[int, PreparedItem] = {}
        by_model: dict[str, dict[int, _Ready]] = {}
        for place, ready in portion.items():
            by_model.setdefault(ready.served.key, {})[place] = ready
        for own in by_model.values():
            for (place, ready), row in zip(own.items(), self._rows([*own.values()], turn), strict=True):
                try:
                    made = row if isinstance(row, Exception) else self._waiting(envelope, ready, row)
                except Exception as error:  # noqa: BLE001 - a bug in a model fails this item only
                    made = error
                prepared[place] = _failed(envelope, ready.item, made) if isinstance(made, Exception) else made
        return prepared

    def _rows(self, together: Sequence[_Ready], turn: PreparationTurn) -> list[Any]:
        """Return the model's prepared rows, or the exception of each item. Slow items give the turn to others."""
        params = [{task.name: own for task, own in ready.params.items()} for ready in together]
        contents = [ready.content for ready in together]
        model = together[0].served.model
        # the decoding of files uses this thread's turn, and waits for others: a call that hangs is the watchdog's
        files = any(isinstance(content, bytes | TextAndImageInput) for content in contents)
        return self.calls.for_many(model, "prepare_many", contents, params, meanwhile=turn.given_back, here=files)

    def _waiting(self, envelope: Envelope, ready: _Ready, prepared: object) -> PreparedItem:
        row = returned.row(ready.served.model, prepared, [task.name for task in ready.params])
        refused = {**ready.refused, **row.refused}
        results = _refusals(envelope, ready.item, refused)
        params = {task: own for task, own in ready.params.items() if task.name not in refused}
        if not params:
            return PreparedItem(ready.item, results)
        waiting = Waiting(
            ready.served.key,
            int(envelope.priority),
            returned.cost(ready.served.model, row),
            steady_time(),
            envelope.deadline_at,
            row.content,
            len(params),
            envelope.tenant,
        )
        entry = Entry(row, tuple(task.name for task in params), waiting, job=envelope.job, seq=ready.item.seq)
        if self.streams and any(getattr(own, "stream", False) for own in params.values()):
            entry.on_text = self.streams.teller(envelope.job, ready.item.seq)
        return PreparedItem(ready.item, results, entry, params, ready.served)

    def _read(self, offer: OfferedVersions, task: Task, value: Input, derivation: Derivation) -> Content:
        """Return the content of an input, checked for the task. The turn is given back during waits."""
        with derivation.turn.reading(value), derivation.reached.reading(value):
            given = carried(value, self.limits)
            return read(offer.catalogue.check_input(task, given, field="input"), self.limits)

    def derivation(self, job: str, items: Sequence[Item], turn: PreparationTurn | None = None) -> Derivation:
        """Return the derivation of the items' derived inputs. Raises StoreUnavailable."""
        made = Derivation(self.database, self.limits, job, turn)
        made.gather(items)
        return made

    def finish(self, envelope: Envelope, items: Sequence[PreparedItem], turn: PreparationTurn) -> list[Result]:
        """Return the results of all items: from their preparation and from their entries' outcomes."""
        with self._finishing(envelope, turn):
            return self.finish_items(envelope, items)

    def finish_items(self, envelope: Envelope, prepared: Sequence[PreparedItem]) -> list[Result]:
        """Return the results of all items: from their preparation and from their entries' outcomes."""
        note("finishing outputs", STEP_LIMIT_S)
        waiting = [(item, item.entry, item.served) for item in prepared if item.entry and item.served]
        asked = [(entry, served.model, item.params) for item, entry, served in waiting]
        answers = outcomes.answered(asked, self.calls)
        results: dict[int, list[Result]] = {}
        for (item, entry, served), own in zip(waiting, answers, strict=True):
            note("finishing an item", STORAGE_LIMIT_S)
            rows = outcomes.finished(envelope, item.item, entry, served, item.params, own, self.calls, self.files)
            results[id(item)] = [*rows]
        return [row for item in prepared for row in (*item.results, *results.get(id(item), ()))]

    def turn(self, envelope: Envelope) -> PreparationTurn:
        """Return the envelope's turn to compute. Half as many envelopes as cores compute at a time.

        So dozens of envelopes neither keep the interpreter from an interactive item, which needs no turn, nor hold a
        decoded recording each.
        """
        return PreparationTurn(None if envelope.priority is Priority.INTERACTIVE else self.turns)

    def _finishing(self, envelope: Envelope, turn: PreparationTurn) -> AbstractContextManager[object]:
        """Return the context of finishing: the turn, unless finishing may wait for the storage of result files."""
        return nullcontext() if any(self._makes_files(item) for item in envelope.items) else turn

    def _makes_files(self, item: Item) -> bool:
        tasks = (self.offer.now.catalogue.tasks.get(name) for name in item.tasks)
        return any(task.kind.makes_files for task in tasks if task)


def _typed(content: JsonInput, model: Model) -> Any:
    """Return the input of a task of the kind `custom` as the type that the class declares. Raises InvalidInput."""
    try:
        return msgspec.convert(content.value, model.input_type)
    except (msgspec.ValidationError, ValueError, TypeError) as error:  # also of a type's own `__post_init__`
        raise InvalidInput("input", str(error), f"{type(model).__name__} declares its form: input_type") from error


def _refusals(envelope: Envelope, item: Item, refused: Mapping[str, InvalidInput]) -> list[Result]:
    return [
        outcomes.result(envelope, item, name, ResultState.FAILED, outcomes.described(error))
        for name, error in refused.items()
    ]


def _failed(envelope: Envelope, item: Item, error: Exception) -> PreparedItem:
    """Return an item that ended with an exception, of its input or of the model."""
    if isinstance(error, InvalidInput):
        return PreparedItem(item, outcomes.ended(envelope, item, ResultState.FAILED, outcomes.described(error)))
    logger.error("envelope %s, item %s: preparation failed: %s", envelope.id, item.seq, without_text(error))
    detail = {"kind": "ModelError", "message": returned.said(error, "preparation failed")}
    return PreparedItem(item, outcomes.ended(envelope, item, ResultState.FAILED, detail))


def _size_bytes(content: object) -> int:
    """Return the bytes of memory that a content takes, for texts and files."""
    if isinstance(content, TextAndImageInput):
        return _size_bytes(content.image.data) if isinstance(content.image, InlineBytes) else 0
    return len(content) if isinstance(content, str | bytes) else 0


def _params(offer: OfferedVersions, envelope: Envelope, item: Item) -> tuple[Params, dict[str, InvalidInput]]:
    """Return the typed parameters of the item's valid tasks, and the refusals of the others.

    Raises InvalidInput for parameters of a task that the item does not have.
    """
    params: dict[Task, msgspec.Struct] = {}
    refused: dict[str, InvalidInput] = {}
    for name in item.params:
        if name not in item.tasks:
            raise InvalidInput(f"params.{name}", "is not a task of the item", f"its tasks: {', '.join(item.tasks)}")
    for name in item.tasks:
        try:
            task = offer.catalogue.task(name)
            if task.model != envelope.model:
                raise InvalidInput("task", f"{name!r} is served by {task.model!r}, not {envelope.model!r}")
            params[task] = offer.catalogue.check_params(task, item.params.get(name, {}), field=f"params.{name}")
        except InvalidInput as error:
            refused[name] = error
    return params, refused
