"""The interface between the fleet and a model: five methods, two of them on the device's side.

One class serves both sides, as two instances. In the worker's parent process, which never imports
torch, the fleet calls `prepare`, `collate`, `cost` and `finish`, from many threads at once. In the device
process it calls `load` once and `forward` for every micro-batch, from one thread. So torch is imported
inside `load` and `forward` only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from producers.wire.catalogue import Task
from producers.wire.errors import ArgosyError, InvalidInput
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.interface import options
from workers.models.interface.sample_inputs import Item

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]


#: The array that holds the digests of a batch's rows, for models that ask for them.
CONTENTS = "contents"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model is made from: its name, its folder of weights, its revision, its tasks, its own options, its backend."""

    name: str
    folder: Path
    revision: str
    tasks: Mapping[str, Task]
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: Backend = REFERENCE


@dataclass(frozen=True, slots=True)
class Prepared:
    """One item ready for the backbone.

    `arrays` is its row, without a batch axis. `size` is the length that padding acts on (tokens; 1 where
    rows are all alike). `content` is a digest: rows of equal content are computed once. `refused` holds the
    tasks that this input cannot be used for, with the reason; the others go on. `aside` is what `finish_item` needs of
    this very item (where its tokens stand in the text, how large the image was); it stays in the parent.
    """

    arrays: Arrays
    size: int
    content: bytes
    refused: Mapping[str, InvalidInput] = field(default_factory=dict)
    aside: Any = None


def digest(arrays: Arrays) -> bytes:
    """Return a digest of a row by its arrays' names, shapes and values: what `Prepared.content` may be."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape} ".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.digest()


#: Digits kept of a probability: about what float32 holds, and half the JSON.
SCORE_DIGITS = 6


class LoadingFailed(ArgosyError):
    """Weights that are loaded when first needed cannot be loaded: the fault of none of the items that wait for them, of which all
    fail at once, and each later batch tries again.
    """


class Model(ABC):
    """A backbone with its heads. The constructor stores, and raises ConfigurationError for wrong options; `load` does the work."""

    #: The options that it has; others are refused. A class that says nothing takes any.
    OPTIONS: ClassVar[options.Options | None] = None

    #: Whether it runs on several backends, so that `argosy tune` can choose one.
    tunable: ClassVar[bool] = False

    #: The backends that the settings may name for it.
    backends: ClassVar[tuple[str, ...]] = ()

    #: The padded cost of a batch, where neither the settings nor a measurement say it.
    default_cost: ClassVar[int] = 1024

    #: Batch costs worth trying, of a tunable one.
    budgets: Sequence[int] = ()

    #: Whether it heeds the parameter `explain` itself; for others `workers.models.explaining` does, if it can.
    explains: ClassVar[bool] = False

    #: How many rows of the last batch needed no pass, since their features were known.
    cached_rows: int = 0

    def __init__(self, spec: ModelSpec) -> None:
        if self.OPTIONS is not None:
            options.check(spec.options, self.OPTIONS, where=f"models.{spec.name}")
        self.spec = spec

    # --- in the parent process, from many threads ---

    @property
    def knows_contents(self) -> bool:
        """Whether `forward` is to find the rows' digests under `CONTENTS`, `(rows, bytes)`."""
        return False

    @property
    def revision(self) -> str:
        """What results are stored with: the source's revision, and whatever else decides the answers."""
        return self.spec.revision

    @abstractmethod
    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Turn an input into a row, for the tasks in `params`. It is a text, the bytes of a file, or for kinds whose input
        is an object, that object (`producers.wire.messages.QuestionInput` …).

        Raises InvalidInput (or InputTooLarge) if the input is of use to none of them.
        """

    def cost(self, prepared: Prepared) -> int:
        """Return the row's cost in the unit of the batch budget: by default its size."""
        return prepared.size

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Stack rows into arrays with a leading batch axis. Models whose rows differ in length pad here."""
        return {name: np.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays}

    @abstractmethod
    def finish(self, task: Task, output: Array, params: msgspec.Struct) -> Any:
        """Turn one row of a head's output into the task's output: a JSON value, or a float32 vector as an array."""

    def finish_item(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """`finish` for an item of which more must be known than the head's output: override it to use `prepared.aside`."""
        return self.finish(task, output, params)

    def trial(self, count: int) -> Sequence[Item]:
        """Return inputs of usual sizes, about `count`, with the tasks wanted on each: what a tunable model is measured on."""
        raise NotImplementedError(f"{type(self).__name__} is tunable, and does not say on what")

    # --- in the device process, from one thread ---

    @abstractmethod
    def load(self, device: str) -> None:
        """Load the weights onto `device` (``cpu``, ``cuda:0``). Called once, before any `forward`.

        A model that comes while others run is loaded in a thread beside theirs: what torch keeps by thread (its default dtype under
        ``with``, grad and autocast modes) is not what `forward` finds; set it there.
        """

    @abstractmethod
    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        """Run the backbone once over the batch, then each wanted head on its rows.

        `wanted` maps a task to the indices (int64) of its rows. Returns for each of these tasks an array with
        a leading axis as long as its indices, in their order; anything else is an error of the whole batch.
        """
