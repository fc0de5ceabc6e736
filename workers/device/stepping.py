"""The stepping requests in a device process: its stepwise models, and the batch of each request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from workers.device.transfer import Header
from workers.models.interface import ragged
from workers.models.interface.model import Arrays, Model
from workers.models.interface.stepwise import StepResult, StepwiseModel

#: A row of a task in a batch.
Key: TypeAlias = tuple[str, str, int]

#: Stepping models report at least this often, so that they do not count as hung.
HEARTBEAT_S = 1.0

#: At most this many dropped batches that have not arrived are remembered: more than the parent ever has in transit.
_UNMET = 4096

#: A callback that sends an event to the parent.
Answer: TypeAlias = tuple[Header, Arrays]


@dataclass(slots=True)
class _Batch:
    model: str
    wanted: Arrays
    outputs: dict[Key, Any] = field(default_factory=dict)
    forward_s: float = 0.0

    def whole(self) -> bool:
        return len(self.outputs) == sum(len(rows) for rows in self.wanted.values())


class SteppingRequests:
    """Not thread-safe. `described` describes an error in the parent's form."""

    def __init__(self, models: Mapping[str, Model], described: Callable[[BaseException], Header]) -> None:
        self._all = models  # models are added and removed later
        self._described = described
        self._batches: dict[str, _Batch] = {}
        self._unmet: deque[str] = deque(maxlen=_UNMET)
        self._told_at = 0.0

    @property
    def _models(self) -> dict[str, StepwiseModel]:
        return {name: model for name, model in self._all.items() if isinstance(model, StepwiseModel)}

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._batches)

    def takes(self, header: Header) -> bool:
        """Whether a frame is for a stepwise model, or its batch was dropped and its model has gone since."""
        return "drop" in header or header["model"] in self._models or self._is_late(header)

    def take(self, header: Header, arrays: Arrays) -> Iterator[Answer]:
        """Let a batch join, or drop one.

        The frame that drops a batch is more urgent and may overtake it: then the batch does not join. The frame that
        unloads its model may overtake it, too.
        """
        if "drop" in header:
            self._unmet += [id_ for id_ in header["drop"] if id_ not in self._batches]
            for id_ in header["drop"]:
                self._drop(id_)
            return
        id_, name = header["batch"], header["model"]
        if id_ in self._unmet:
            return
        wanted = {task: arrays.pop(f"wanted/{task}") for task in header["tasks"]}
        self._batches[id_] = _Batch(name, wanted)
        try:
            for task, rows in wanted.items():
                for row in rows.tolist():
                    self._models[name].join((id_, task, row), task, arrays[task][row], urgency=header["urgency"])
        except Exception as error:  # noqa: BLE001 - it costs this batch only: nothing of it has stepped
            self._drop(id_)
            yield {"event": "failed", "batch": id_, **self._described(error)}, {}

    def _is_late(self, header: Header) -> bool:
        return header["model"] not in self._all and header["batch"] in self._unmet

    def step(self) -> Iterator[Answer]:
        """Take a step of each model that has requests."""
        for name, model in self._models.items():
            try:
                told = [*self._told(model.step())] if model.busy else []
            except BaseException as error:  # noqa: BLE001 - the parent finds out whose fault it was
                yield {"event": "failed", "batches": self._clear(name), **self._described(error)}, {}
                continue
            yield from told
        if time.monotonic() - self._told_at >= HEARTBEAT_S:
            self._told_at = time.monotonic()
            yield {"event": "stepping", "pieces": []}, {}

    def _told(self, stepped: Collection[StepResult]) -> Iterator[Answer]:
        pieces = [(*_key(one), one.at, one.text) for one in stepped if one.text]
        if pieces:
            yield {"event": "stepping", "pieces": pieces}, {}
        for one in stepped:
            if not one.ended:
                continue
            id_, task, row = _key(one)
            batch = self._batches[id_]
            batch.outputs[id_, task, row] = one.output
            batch.forward_s += one.forward_s
            if batch.whole():
                del self._batches[id_]
                yield {"event": "done", "batch": id_, "forward_s": batch.forward_s}, _outputs(id_, batch)

    def _drop(self, id_: str) -> None:
        batch = self._batches.pop(id_, None)
        if batch is not None:
            for task, rows in batch.wanted.items():
                for row in rows.tolist():
                    self._models[batch.model].leave((id_, task, row))

    def _clear(self, model: str) -> list[str]:
        """Forget all batches of a model and return them."""
        self._models[model].clear()
        gone = [id_ for id_, batch in self._batches.items() if batch.model == model]
        for id_ in gone:
            del self._batches[id_]
        return gone


def _key(stepped: StepResult) -> Key:
    assert isinstance(stepped.key, tuple), "as it was given to `join`"
    id_, task, row = stepped.key
    return id_, task, row


def _outputs(id_: str, batch: _Batch) -> Arrays:
    return {
        task: ragged.pack([batch.outputs[id_, task, row] for row in rows.tolist()])
        for task, rows in batch.wanted.items()
    }
