"""The interface between the fleet and a model: four methods to write, `prepare`, `finish`, `load` and `forward`.

One class serves both sides, as two instances. In the worker's parent process, which never imports torch, the fleet
calls `prepare`, `collate`, `cost` and `finish`, from many threads at once. In the device process it calls `load` once
and `forward` for every micro-batch, from one thread. So torch is imported inside `load` and `forward` only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from producers.wire.catalogue import Task
from producers.wire.errors import ArgosyError, ConfigurationError, InvalidInput
from producers.wire.kinds import Kind
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.interface import options, sample_inputs
from workers.models.interface.previous_form import PreviousForm
from workers.models.interface.sample_inputs import Item

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

#: The parameters of the tasks that are wanted of an input, by task.
Params: TypeAlias = Mapping[str, msgspec.Struct]

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

    `arrays` is its row, without a batch axis. `size` is the length that padding acts on (tokens; 1 where rows are all
    alike). `content` is a digest: rows of equal content are computed once. `refused` holds the tasks that this input
    cannot be used for, with the reason; the others go on. `aside` is for `finish`: what it needs to know of this item
    (where its tokens stand in the text, how large the image was). It stays in the parent.
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


def padded(rows: Sequence[Array]) -> Array:
    """Return arrays of as many axes each as the rows of one, `(rows, …)`, with zeros behind those that are shorter on
    an axis.
    """
    shapes = {row.shape for row in rows}
    if len(shapes) == 1:
        return np.stack(rows)
    batch = np.zeros((len(rows), *map(max, zip(*shapes, strict=True))), dtype=rows[0].dtype)
    for own, row in zip(batch, rows, strict=True):
        own[tuple(map(slice, row.shape))] = row
    return batch


class Model(PreviousForm, ABC):
    """A backbone with its heads. A class writes `prepare`, `finish`, `load` and `forward`; everything else has a
    default.

    The constructor stores, and raises ConfigurationError for wrong options; `load` does the work.
    """

    #: The struct of its options, which `self.options` holds decoded.
    #: None: the class takes any options, and finds them in `self.spec.options`.
    options_class: ClassVar[type[msgspec.Struct] | None] = None

    #: The one kind of task that it serves; tasks of other kinds are refused. None: it serves whatever its tasks name.
    kind: ClassVar[Kind | None] = None

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
        where = f"models.{spec.name}"
        self.spec = spec
        given = self._options_of_struct(spec.options, where)
        self.options: Any = options.decode(self.options_class, given, where=where) if self.options_class else None
        for task in spec.tasks.values():
            if self.kind is not None and task.kind != self.kind:
                problem = f"is of the kind {task.kind.name}, and {type(self).__name__} serves {self.kind.name} only"
                raise ConfigurationError(f"{where}.tasks.{task.name}: {problem}")

    # --- in the parent process, from many threads ---

    @property
    def knows_contents(self) -> bool:
        """Whether `forward` is to find the rows' digests under `CONTENTS`, uint8 `(rows, bytes)`."""
        return False

    @property
    def revision(self) -> str:
        """What results are stored with: the source's revision, and whatever else decides the answers.

        It is read when the worker starts: raise ConfigurationError here for settings or files that are wrong.
        """
        return self.spec.revision

    @abstractmethod
    def prepare(self, content: Any, params: Params) -> Prepared:
        """Turn an input into a row, for the tasks in `params`. It is a text, the bytes of a file, or for kinds whose
        input is an object, that object (`producers.wire.messages.QuestionInput` …).

        Raises InvalidInput (or InputTooLarge) if the input is of use to none of them; of use to some, it puts the
        others' errors in `Prepared.refused`. Any other exception fails the item as the model's fault.
        """

    def prepare_many(self, contents: Sequence[Any], params: Sequence[Params]) -> list[Prepared | Exception]:
        """Prepare several inputs, each for the tasks in its own `params`: by default one after another, by `prepare`.

        Returns one entry for each input, in their order: its row, or the exception that `prepare` raises for it alone.
        So an input never fails its neighbours. An exception that is raised instead of returned fails them all.
        """
        return [_tried(self.prepare, *each) for each in zip(contents, params, strict=True)]

    def cost(self, prepared: Prepared) -> int:
        """Return the row's cost in the unit of the batch budget: by default its size."""
        return prepared.size

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Stack rows into arrays with a leading batch axis, `(rows, …)`. Arrays of different lengths get zeros behind
        the shorter ones.

        Where zeros could be values, a row keeps its own length as one more array, or the class writes its own
        `collate`.
        """
        return {name: padded([row.arrays[name] for row in rows]) for name in rows[0].arrays}

    @abstractmethod
    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Turn one row of a head's output, `forward`'s array without its leading axis, into the task's output for the
        item `prepared`: a JSON value, or a float32 vector as an array.

        Any exception fails the task's result for this item as the model's fault; the item's other tasks go on.
        """

    def finish_many(
        self,
        task: Task,
        outputs: Sequence[Array] | Array,
        params: Sequence[msgspec.Struct],
        prepared: Sequence[Prepared],
    ) -> list[Any]:
        """Finish several rows of a task's output, a list of them or an array: by default one after another, by
        `finish`.

        Returns one entry for each row, in their order: its output, or the exception that `finish` raises for it alone.
        An exception that is raised instead of returned fails them all.
        """
        return [_tried(self.finish, task, *each) for each in zip(outputs, params, prepared, strict=True)]

    def samples(self, count: int) -> Sequence[Item]:
        """Return inputs of usual sizes, about `count`, with the parameters of the tasks wanted on each: what a model is
        tried and measured on. By default those of the tasks' kinds; raises NotImplementedError for kinds of rows and
        series.
        """
        return sample_inputs.for_tasks(self.spec.tasks, count)

    # --- in the device process, from one thread ---

    @abstractmethod
    def load(self, device: str) -> None:
        """Load the weights onto `device` (``cpu``, ``cuda:0``). Called once, before any `forward`.

        Whatever it raises keeps the worker from starting. A model that comes while others run is loaded in a thread
        beside theirs: what torch keeps by thread (its default dtype under ``with``, grad and autocast modes) is not
        what `forward` finds; set it there.
        """

    @abstractmethod
    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        """Run the backbone once over the batch that `collate` made, then each wanted head on its rows.

        `wanted` maps a task to the indices of its rows, int64 `(wanted,)`. Returns for each of these tasks an array
        `(wanted, …)`, in the order of its indices; anything else is an error of the whole batch. After an exception the
        batch is halved until the item that causes it is alone.
        """


def _tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns, or the exception that it raises."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 - a model's own code: whatever it raises is this item's
        return error
