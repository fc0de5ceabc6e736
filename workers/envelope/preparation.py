"""An item before and after its micro-batch: checked and prepared, and its outputs made results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.messages import Envelope, Input, Item, Priority
from producers.wire.result_files import ResultFiles
from results_store.errors import StoreUnavailable
from results_store.records import Result, ResultState
from results_store.store import Store
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.serving import served_explainers
from workers.batching.serving.offered_versions import CurrentOffer, Offer
from workers.batching.work import Entry
from workers.device.devices import available_cores
from workers.envelope import outcomes
from workers.envelope.derivation import Derivation
from workers.envelope.inputs import Content, InputLimits, carried, read
from workers.envelope.preparation_turns import Turn
from workers.envelope.streams import Streams
from workers.models.interface.model import Model

logger = logging.getLogger(__name__)

Params = Mapping[Task, msgspec.Struct]


@dataclass(frozen=True, slots=True)
class PreparedItem:
    """One item after preparation: the results it already has, and the entry that waits for the rest, with the version of the model
    that prepared it.
    """

    item: Item
    results: list[Result]
    entry: Entry | None = None
    params: Params = field(default_factory=dict)
    model: Model | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The parent's side of the models served here. Thread-safe."""

    offer: CurrentOffer
    limits: InputLimits
    database: Store
    streams: Streams | None = None
    files: ResultFiles | None = None
    turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(max(1, available_cores() // 2)))

    def fetch_inputs(self, envelope: Envelope) -> Derivation:
        """Read the earlier results that the envelope's inputs are made of, all at once. Raises StoreUnavailable."""
        return self.derivation(envelope.job, envelope.items, self.turn(envelope))

    def prepare(self, envelope: Envelope, inputs: Derivation) -> list[PreparedItem]:
        """Check and prepare the envelope's items, in its turn. Raises StoreUnavailable."""
        with inputs.turn:
            return [self.prepare_item(envelope, item, inputs) for item in envelope.items]

    def prepare_item(self, envelope: Envelope, item: Item, derivation: Derivation) -> PreparedItem:
        """Check and prepare an item; what is wrong with it is in its results. Raises StoreUnavailable."""
        if envelope.deadline_at is not None and envelope.deadline_at <= time.time():
            return PreparedItem(item, outcomes.ended(envelope, item, ResultState.EXPIRED))
        offer = self.offer.now
        try:
            params, refused = _params(offer, envelope, item)
            return self._prepared(offer, envelope, item, params, refused, derivation)
        except InvalidInput as error:
            return PreparedItem(item, outcomes.ended(envelope, item, ResultState.FAILED, outcomes.described(error)))
        except StoreUnavailable:  # nobody's fault here: the envelope is attempted again
            raise
        except Exception as error:  # a model's own code: its bug costs this item, never the envelope
            logger.exception("envelope %s, item %s: preparation failed", envelope.id, item.seq)
            detail = {"kind": "ModelError", "message": f"preparation failed: {type(error).__name__}: {error}"}
            return PreparedItem(item, outcomes.ended(envelope, item, ResultState.FAILED, detail))

    def _prepared(
        self,
        offer: Offer,
        envelope: Envelope,
        item: Item,
        params: Params,
        refused: Mapping[str, InvalidInput],
        derivation: Derivation,
    ) -> PreparedItem:
        entry = model = None
        if params:
            served = offer.models[served_explainers.way(offer.models, envelope.model, params.values())]
            model = served.model
            content = self._read(offer, next(iter(params)), derivation.input(item.input), derivation.turn)
            row = model.prepare(content, {task.name: own for task, own in params.items()})
            refused = {**refused, **row.refused}
            params = {task: own for task, own in params.items() if task.name not in refused}
            if params:
                waiting = Waiting(
                    served.key,
                    int(envelope.priority),
                    model.cost(row),
                    time.time(),
                    envelope.deadline_at,
                    row.content,
                    len(params),
                    envelope.tenant,
                )
                entry = Entry(row, tuple(task.name for task in params), waiting, job=envelope.job, seq=item.seq)
                if self.streams and any(getattr(own, "stream", False) for own in params.values()):
                    entry.on_text = self.streams.teller(envelope.job, item.seq)
        results = [
            outcomes.result(envelope, item, name, ResultState.FAILED, outcomes.described(error))
            for name, error in refused.items()
        ]
        return PreparedItem(item, results, entry, params, model)

    def _read(self, offer: Offer, task: Task, value: Input, turn: Turn) -> Content:
        """Return what an input holds, checked for the task; others compute while it is waited for."""
        with turn.reading(value):
            given = carried(value, self.limits)
            return read(offer.catalogue.check_input(task, given, field="input"), self.limits)

    def derivation(self, job: str, items: Sequence[Item], turn: Turn | None = None) -> Derivation:
        """Return what makes the inputs of items that are made of others. Raises StoreUnavailable."""
        made = Derivation(self.database, self.limits, job, turn)
        made.gather(items)
        return made

    def finish(self, envelope: Envelope, items: Sequence[PreparedItem], turn: Turn) -> list[Result]:
        """Return the results of all items: those from their preparation, and those that their entries came to."""
        with self._finishing(envelope, turn):
            return [row for item in items for row in (*item.results, *self.finish_item(envelope, item))]

    def finish_item(self, envelope: Envelope, one: PreparedItem) -> Iterable[Result]:
        """Return the results that the item's entry came to."""
        if one.entry is None or one.model is None:
            return ()
        return outcomes.finished(envelope, one.item, one.entry, one.model, one.params, self.files)

    def turn(self, envelope: Envelope) -> Turn:
        """What an envelope's own computing waits for: half of the cores' worth at a time, so that dozens of envelopes neither
        stand between an interactive item, which waits for nothing, and the interpreter, nor hold a decoded recording each.
        """
        return Turn(None if envelope.priority is Priority.INTERACTIVE else self.turns)

    def _finishing(self, envelope: Envelope, turn: Turn) -> AbstractContextManager[object]:
        """What finishing waits for: the turn, unless it may wait for the place of result files."""
        return nullcontext() if any(self._makes_files(item) for item in envelope.items) else turn

    def _makes_files(self, item: Item) -> bool:
        tasks = (self.offer.now.catalogue.tasks.get(name) for name in item.tasks)
        return any(task.kind.makes_files for task in tasks if task)


def _params(offer: Offer, envelope: Envelope, item: Item) -> tuple[Params, dict[str, InvalidInput]]:
    """Return the typed parameters of the tasks that this item may have, and the refusals of the others."""
    params: dict[Task, msgspec.Struct] = {}
    refused: dict[str, InvalidInput] = {}
    for name in item.tasks:
        try:
            task = offer.catalogue.task(name)
            if task.model != envelope.model:
                raise InvalidInput("task", f"{name!r} is served by {task.model!r}, not {envelope.model!r}")
            params[task] = offer.catalogue.check_params(task, item.params.get(name, {}), field=f"params.{name}")
        except InvalidInput as error:
            refused[name] = error
    return params, refused
