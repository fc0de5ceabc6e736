"""Finds the item at fault in a failed batch, by halving.

The halves of a failed batch run again, each alone on the device and with nothing staged behind it, until single items
remain. An item that raises alone has failed. An item under which the process died must die twice alone, since the first
death may have had another cause (the kernel's out-of-memory killer, an operator). Weights that cannot be loaded are no
item's fault: both halves would fail alike, after an attempt at loading each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from workers.batching.block_batches import BlockBatch
from workers.batching.microbatch import MicroBatch
from workers.batching.work import Entry, Failed, TakenApart
from workers.models.interface.class_calls import ClassHung
from workers.models.interface.model import LoadingFailed
from workers.models.interface.returned import WrongReturn

#: These faults need no text of an exception; any other kind is the model's own exception.
_KNOWN = ("OutOfMemory", "WrongOutput", LoadingFailed.__name__)


#: Errors of a model's class whose text is a sentence, too.
_SENTENCES = (WrongReturn.__name__, ClassHung.__name__)


class Suspects:
    """The groups of entries that must still run alone. While there are any, nothing else runs on the device."""

    def __init__(self) -> None:
        self._groups: deque[Sequence[Entry]] = deque()

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def models(self) -> list[str]:
        """The model of each group, in the order in which they run."""
        return [group[0].waiting.model for group in self._groups]

    @property
    def next_model(self) -> str:
        """The model of the next group."""
        return self._groups[0][0].waiting.model

    def next(self) -> Sequence[Entry]:
        """Remove and return the next group to run."""
        return self._groups.popleft()

    def raised(self, batch: MicroBatch, kind: str, message: str, traceback: str) -> None:
        """Handle a failed batch on a living device: a lone item has failed, several are halved, unless no item was at
        fault. A part of a block is taken apart.
        """
        if _taken_apart(batch):
            return
        if len(batch.entries) > 1 and kind != LoadingFailed.__name__:
            self._halve(batch)
            return
        known = kind in _KNOWN
        text = message if known or kind in _SENTENCES else f"{kind}: {message}"
        for entry in batch.entries:
            entry.finish(Failed(kind if known else "ModelError", text, traceback, batch.id))

    def died(self, batch: MicroBatch, kind: str, message: str) -> None:
        """Handle the loss of the device during a batch. A lone item fails the second time, or at once if it hung."""
        if _taken_apart(batch):
            return
        if len(batch.entries) > 1:
            self._halve(batch)
            return
        entry = batch.entries[0]
        entry.deaths += 1
        if entry.deaths > 1 or kind == "DeviceHung":
            entry.finish(Failed(kind, f"with this item alone, {message}", "", batch.id))
        else:
            self._groups.appendleft(batch.entries)

    def clear(self) -> list[Entry]:
        """Remove and return all groups, at the end."""
        entries = [entry for group in self._groups for entry in group]
        self._groups.clear()
        return entries

    def _halve(self, batch: MicroBatch) -> None:
        middle = len(batch.entries) // 2
        self._groups.extendleft((batch.entries[middle:], batch.entries[:middle]))


def _taken_apart(batch: MicroBatch) -> bool:
    """Take a part of a block apart, if the batch is one: its texts come again as items, and are halved as such."""
    if not isinstance(batch, BlockBatch):
        return False
    for entry in batch.entries:
        entry.finish(TakenApart())
    return True
