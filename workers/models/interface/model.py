"""The interface between the fleet and a model: four methods to write, `prepare`, `finish`, `load` and `forward`.

A class serves two processes, as two instances. In the worker's parent process, which never imports torch, the fleet
calls `prepare`, `collate`, `cost` and `finish`, from many threads at once. In the device process it calls `load` once
and `forward` for every micro-batch, from a single thread. Import torch inside `load` and `forward` only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
import numpy as np
from msgspec import json
from numpy.typing import NDArray

from producers.wire.catalogue import Task
from producers.wire.errors import ArgosyError, ConfigurationError, InvalidInput
from producers.wire.kinds import Kind
from producers.wire.kinds.custom import CUSTOM
from producers.wire.messages import TextAndImageInput
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.decoding.isolation import DecodingInterrupted, each
from workers.models.interface import options, sample_inputs
from workers.models.interface.previous_form import PreviousForm
from workers.models.interface.sample_inputs import Item
from workers.models.interface.text_block import BlockAnswers, TextBlock

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

#: The parameters of the tasks that an item asks for, by task.
Params: TypeAlias = Mapping[str, msgspec.Struct]

#: The array with the digests of a batch's rows, for models that read them (`Model.knows_contents`).
CONTENTS = "contents"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The settings of a model: name, folder of the weights, revision, tasks, options and backend."""

    name: str
    folder: Path
    revision: str
    tasks: Mapping[str, Task]
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: Backend = REFERENCE


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item, ready for the backbone.

    `arrays` is its row, without a batch axis. `size` is the length that padding acts on: tokens, or 1 if all rows have
    the same shape. `content` is a digest: rows of equal content are computed once. `refused` maps each task that cannot
    use this input to the error; the item's other tasks go on. `aside` holds data about this item for `finish` (the
    tokens' positions in the text, the size of the image); it stays in the parent process.
    """

    arrays: Arrays
    size: int
    content: bytes
    refused: Mapping[str, InvalidInput] = field(default_factory=dict)
    aside: Any = None


def digest(arrays: Arrays) -> bytes:
    """Return a digest of the arrays' names, shapes and values, to be used as `Prepared.content`."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape} ".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.digest()


#: Digits of a probability in an output: about the precision of float32, and half the JSON.
SCORE_DIGITS = 6


class LoadingFailed(ArgosyError):
    """Weights that are loaded on first use could not be loaded.

    No item is at fault: all waiting items fail at once, and each later batch tries to load again.
    """


def padded(rows: Sequence[Array]) -> Array:
    """Stack arrays with equally many axes into `(rows, …)`, padded with zeros at the end of each axis.

    Raises ValueError for different types: a neighbour's type would change a row's values.
    """
    shapes = {row.shape for row in rows}
    if any(row.dtype != rows[0].dtype for row in rows):
        raise ValueError(f"the rows of a batch have different types: {sorted({str(row.dtype) for row in rows})}")
    if len(shapes) == 1:
        return np.stack(rows)
    batch = np.zeros((len(rows), *map(max, zip(*shapes, strict=True))), dtype=rows[0].dtype)
    for own, row in zip(batch, rows, strict=True):
        own[tuple(map(slice, row.shape))] = row
    return batch


class Model(PreviousForm, ABC):
    """A backbone with its heads. Subclasses write `prepare`, `finish`, `load` and `forward`; all else has a default.

    The constructor only stores its arguments, and raises ConfigurationError for wrong options; `load` does the work.
    """

    #: The struct of the model's options; `self.options` holds the decoded struct.
    #: None: the class accepts any options and reads them from `self.spec.options`.
    options_class: ClassVar[type[msgspec.Struct] | None] = None

    #: The only kind of task that the model serves; other kinds are refused. None: it serves every kind.
    kind: ClassVar[Kind | None] = None

    #: For tasks of the kind `custom`: the types of the input and of the answer, any that msgspec knows. `prepare` gets
    #: the input as its type. Clients check inputs by the JSON Schema of it, which workers keep in the store.
    input_type: ClassVar[Any] = Any
    output_type: ClassVar[Any] = Any

    #: Whether the model runs on several backends, so that `argosy tune` can choose.
    tunable: ClassVar[bool] = False

    #: The backends that the settings may name for the model.
    backends: tuple[str, ...] = ()

    #: The padded cost of a batch, unless the settings or a measurement give another.
    default_cost: ClassVar[int] = 1024

    #: Batch costs for `argosy tune` to try, if the model is tunable.
    budgets: Sequence[int] = ()

    #: Whether the model itself implements the parameter `explain`; for others, `workers.models.explaining` may.
    explains: ClassVar[bool] = False

    #: Rows of the last batch that skipped the backbone because their features were cached.
    cached_rows: int = 0

    #: Whether a process that loads the model anew needs fewer libraries than this load, which made or compared a file.
    loads_lighter: bool = False

    def __init__(self, spec: ModelSpec) -> None:
        where = f"models.{spec.name}"
        self.spec = spec
        given = self._options_of_struct(spec.options, where)
        self.options: Any = options.decode(self.options_class, given, where=where) if self.options_class else None
        for task in spec.tasks.values():
            if self.kind is not None and task.kind != self.kind:
                problem = f"is of the kind {task.kind.name}, but {type(self).__name__} serves only {self.kind.name}"
                raise ConfigurationError(f"{where}.tasks.{task.name}: {problem}")

    @property
    def reference(self) -> Backend:
        """The backend whose answers judge all others, and that serves where nothing was measured."""
        return REFERENCE

    @classmethod
    def schemas(cls) -> dict[str, Any]:
        """Return the JSON Schemas of the `input` and the `output` of tasks of the kind `custom`.

        Raises ConfigurationError for a type without a schema.
        """
        try:
            return {"input": json.schema(cls.input_type), "output": json.schema(cls.output_type)}
        except (TypeError, RuntimeError) as error:
            problem = f"`input_type` and `output_type` must be types that msgspec knows: {error}"
            raise ConfigurationError(f"{cls.__module__}.{cls.__qualname__}: {problem}") from error

    def declared_schemas(self) -> dict[str, Any] | None:
        """Return the JSON Schema of the tasks' `input`, for the store: clients read it there. None for no schema.

        Raises ConfigurationError for a type without a schema, or files that cannot be read.
        """
        return self.schemas() if any(task.kind is CUSTOM for task in self.spec.tasks.values()) else None

    # --- in the parent process, from many threads ---

    @property
    def knows_contents(self) -> bool:
        """Whether `forward` receives the rows' digests as `CONTENTS`, uint8 `(rows, bytes)`."""
        return False

    @property
    def revision(self) -> str:
        """The revision that results are stored with: the source's revision, and all else that decides the answers.

        The worker reads it at its start: raise ConfigurationError here for wrong settings or files.
        """
        return self.spec.revision

    @abstractmethod
    def prepare(self, content: Any, params: Params) -> Prepared:
        """Turn an input into a row for the tasks in `params`.

        `content` is a text, the bytes of a file, an object (`producers.wire.messages.RowInput` …), or for the kind
        `custom` an `input_type`; `argosy kinds` lists them. Files that it needs it reads at its first call, from
        `self.spec.folder`, and keeps; calls come from many threads at once. Raises InvalidInput or InputTooLarge if no
        task can use the input; if some tasks can, put the errors of the others in `Prepared.refused`. Any other
        exception fails the item as the model's fault.
        """

    def prepare_many(self, contents: Sequence[Any], params: Sequence[Params]) -> list[Prepared | Exception]:
        """Prepare several inputs, each with its own `params`. The default calls `prepare` for each, and for files that
        are decoded in other processes it does so from several threads.

        Returns an entry for each input, in order: its row, or the exception that `prepare` raises for this input, so
        that an input never fails its neighbours. An exception that is raised instead of returned fails all of them.
        """
        prepare, rows = partial(tried, self.prepare), [*zip(contents, params, strict=True)]
        files = any(isinstance(content, bytes | TextAndImageInput) for content in contents)
        return each(prepare, rows) if files else [prepare(*row) for row in rows]

    def cost(self, prepared: Prepared) -> int:
        """Return the row's cost in the unit of the batch budget. The default is its size."""
        return prepared.size

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Stack rows into arrays with a leading batch axis, `(rows, …)`, with zeros after the end of shorter arrays.

        If zeros could be values, add the length of each row as another array in `prepare`, or override `collate`.
        """
        names = rows[0].arrays.keys()
        if any(row.arrays.keys() != names for row in rows):
            # the rows are then run in smaller groups, in which they are alike
            raise ValueError("the rows of a batch have arrays of different names; override `collate`")
        return {name: padded([row.arrays[name] for row in rows]) for name in names}

    @abstractmethod
    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Turn a row of a head's output into the task's output for the item `prepared`: JSON, or a float32 vector.

        `output` is the row of `forward`'s array, without the leading axis. Any exception fails the task's result for
        this item as the model's fault; the item's other tasks go on.
        """

    def finish_many(
        self,
        task: Task,
        outputs: Sequence[Array] | Array,
        params: Sequence[msgspec.Struct],
        prepared: Sequence[Prepared],
    ) -> list[Any]:
        """Finish several rows of a task's output. The default calls `finish` for each.

        Returns an entry for each row, in order: its output, or the exception that `finish` raises for this row. An
        exception that is raised instead of returned fails all rows.
        """
        return [tried(self.finish, task, *each) for each in zip(outputs, params, prepared, strict=True)]

    # --- the same for the texts of a large envelope, with a call for all ---

    def prepare_block(self, contents: Sequence[str], params: Params) -> TextBlock | None:
        """Prepare texts that all have these tasks and parameters. None, the default: they are prepared one by one.

        A text that is refused, by the model or for a task, and any that is not simple, is left `ALONE`: it is prepared
        by `prepare`. The answers must be those of `prepare` and `finish`. Rows cost their sizes.
        """
        return None

    def collate_blocks(self, parts: Sequence[tuple[TextBlock, Array]]) -> Arrays:
        """Return the arrays of rows, int64 `(rows,)`, of several blocks, one after another, like `collate`."""
        raise NotImplementedError

    def finish_block(self, task: Task, outputs: Array, params: msgspec.Struct) -> BlockAnswers:
        """Finish the rows of a task's output, `(texts, …)`, all finite, like `finish`.

        After an exception all texts are computed again, one by one.
        """
        raise NotImplementedError

    def samples(self, count: int) -> Sequence[Item]:
        """Return about `count` inputs of usual sizes to test and measure the model, each with its tasks' parameters.

        The default takes the samples of the tasks' kinds. Raises NotImplementedError for kinds with table rows or
        series.
        """
        return sample_inputs.for_tasks(self.spec.tasks, count)

    # --- in the device process, from one thread ---

    @abstractmethod
    def load(self, device: str) -> None:
        """Load the weights onto `device` (``cpu``, ``cuda:0``). Called once, before any `forward`.

        An exception keeps the worker from starting. A model that is added while others run is loaded in another thread
        than `forward`: set torch's state per thread (default dtype under ``with``, grad and autocast modes) in
        `forward`.
        """

    def try_out(self) -> None:
        """Try the loaded model on sample inputs. Called once after `load`, in the same thread.

        The default does nothing. Raises ConfigurationError, like `load`, if the model cannot answer or if its answers
        depend on the other inputs of a batch.
        """

    @abstractmethod
    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        """Run the backbone once over a batch from `collate`, then run each wanted head on its rows.

        `wanted` maps a task to the indices of its rows, int64 `(wanted,)`. Returns an array `(wanted, …)` for each of
        these tasks, in the order of its indices; any other shape fails the whole batch. After an exception the batch is
        halved until the item at fault is alone.
        """


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call of a model's own code, or the exception that it raises.

    Raises DecodingInterrupted if the worker stops meanwhile.
    """
    try:
        return call(*arguments)
    except DecodingInterrupted:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it raises is this item's
        return error
    except BaseException as error:  # noqa: BLE001 - SystemExit, which would end the thread
        return RuntimeError(f"{type(error).__name__}: {error}")
