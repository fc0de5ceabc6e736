"""The base class of models from Hugging Face folders: a head for each task, with its folder, options and network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta, field

from producers.wire.atomic_files import atomically
from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.adapters.lora_folder import Adapter
from workers.models.backends import choice
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.huggingface import trial
from workers.models.huggingface.checkpoint import AdaptedCheckpoint, Checkpoint
from workers.models.huggingface.checkpoint_networks import CheckpointNetwork, CheckpointNetworks
from workers.models.huggingface.onnx_source import onnx_file
from workers.models.huggingface.onnx_source.onnx_file import OnnxFile
from workers.models.interface.model import Array, Model, ModelSpec, Prepared
from workers.models.interface.options import Options, Table
from workers.models.sources import model_source

if TYPE_CHECKING:
    from workers.models.huggingface.exported import Inputs
    from workers.models.huggingface.onnx_source.given_network import GivenNetwork


logger = logging.getLogger(__name__)


#: Whether a folder that names code of its own is refused, or read by transformers' own code.
OwnCode = Annotated[Literal["refused", "ignored"], Meta(description='"refused" or "ignored"')]


class FolderOptions(Options, frozen=True):
    """A folder that names code of its own is refused, unless `own_code` is "ignored": transformers' code runs then."""

    own_code: OwnCode = "refused"


class HeadOptions(FolderOptions, frozen=True):
    """`heads` gives a task the folder of its own network. `function_to_apply` gives a task the function from raw output
    to scores.
    """

    heads: Table = field(default_factory=dict)
    function_to_apply: Table = field(default_factory=dict)


class Head(Protocol):
    """The interface of a task's head that `FolderModel` uses."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def auto(self) -> str: ...
    def check(self) -> None: ...
    def finish(self, output: Array, params: Any, aside: Any) -> Any: ...


H = TypeVar("H", bound=Head)
_Read = TypeVar("_Read")


class FolderModel(Model, Generic[H]):
    """The base class of models from folders. A subclass writes `_head`, `prepare`, `collate` and `forward`."""

    backends: tuple[str, ...] = ("torch",)

    #: The classes of transformers that read inputs; those of texts, unless a subclass says otherwise.
    READERS: ClassVar[tuple[str, ...]] = ("AutoTokenizer",)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if self.onnx is not None:
            self.backends = ("onnxruntime", "openvino")
        self._loaded: CheckpointNetworks | None = None
        self.equal_lengths = False
        self._device = "cpu"

    @abstractmethod
    def _head(self, task: Task, checkpoint: Checkpoint) -> H:
        """Return the head of a task. Its network and labels come from `checkpoint`."""

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        if self.onnx is not None:
            self._check_single(self.onnx)
        for head in self.heads.values():
            head.check()  # report a wrong setting when the worker starts
            if self.onnx is None:
                head.checkpoint.check_weights()
        if self.onnx is not None:
            self._check_file(self.onnx)
        self._refuse_own_code()
        self._refuse_compiling()
        return self._weights if self.spec.backend.is_reference else f"{self._weights}+{self.spec.backend}"

    @property
    def _weights(self) -> str:
        """The revision of all weights, for any backend."""
        return "+".join(
            [
                self.spec.revision + (f"/{self.onnx.name}" if self.onnx else ""),
                *(model_source.folder_revision(folder) for folder in self._own_folders.values()),
                *(model_source.folder_revision(adapter.folder) for adapter in self.adapters.values()),
            ]
        )

    @cached_property
    def onnx(self) -> OnnxFile | None:
        """The ONNX file that the model is served from, if its class has the option and the folder no other weights."""
        if not hasattr(self.options, "onnx"):
            return None
        name = self.options.onnx or onnx_file.usual(self.checkpoint)
        return OnnxFile(self.checkpoint, name) if name else None

    @property
    def reference(self) -> Backend:
        return self.onnx.reference if self.onnx is not None else super().reference

    @property
    def _backend(self) -> Backend:
        """The backend that computes."""
        return self.reference if self.spec.backend.is_reference else self.spec.backend

    def _check_single(self, file: OnnxFile) -> None:
        """Raise ConfigurationError if the options name networks beside an ONNX file."""
        for option, given in (("heads", self._own_folders), ("adapters", self.adapters)):
            if given:
                problem = f"{file.path} has a single network"
                raise ConfigurationError(f"{self.where}.options.{option}: {problem}; leave the option out")

    def _check_file(self, file: OnnxFile) -> None:
        """Raise ConfigurationError if an ONNX file cannot serve the tasks in the wanted precision."""
        file.check((name, self.spec.tasks[name].kind.name, head.auto) for name, head in self.heads.items())
        own, wanted = file.precision, self._backend.precision
        if own != wanted and (self._backend.name == "onnxruntime" or own != "fp32"):
            problem = f"{file.path} is in {own}, not {wanted}"
            raise ConfigurationError(f'{self.where}.precision: {problem}; set it to "{own}", or leave `backend` out')

    def _refuse_own_code(self) -> None:
        if getattr(self.options, "own_code", "refused") == "refused":
            self.checkpoint.refuse_own_code(self.READERS)
            for head in self.heads.values() if self.onnx is None else ():
                head.checkpoint.refuse_own_code([head.auto])

    def _refuse_compiling(self) -> None:
        if self.spec.backend.compiled:
            raise ConfigurationError(f"{self.where}.compile: not supported for models without a `class`; leave it out")

    @cached_property
    def heads(self) -> Mapping[str, H]:
        return {name: self._head(task, self._checkpoint_of(name)) for name, task in self.spec.tasks.items()}

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return self.heads[task.name].finish(output, params, prepared.aside[task.name])

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model's main folder."""
        return Checkpoint(self.spec.folder, self.where)

    def _checkpoint_of(self, task: str) -> Checkpoint:
        if task in self.adapters:
            if task in self._own_folders:
                raise ConfigurationError(
                    f"{self.where}.options.adapters.{task}: the task has a folder in `heads`, too; remove one of them"
                )
            return AdaptedCheckpoint(self.spec.folder, self.where, self.adapters[task])
        return Checkpoint(self._own_folders.get(task, self.spec.folder), self.where)

    @cached_property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapter of each task that has an adapter. Adapters from the same folder are equal."""
        given: Mapping[str, str] = getattr(self.options, "adapters", {})  # not all classes have the option
        if unknown := sorted(set(given) - set(self.spec.tasks)):
            raise ConfigurationError(f"{self.where}.options.adapters.{unknown[0]}: the model has no such task")
        where = f"{self.where}.options.adapters"
        found = {task: Adapter(Path(folder).expanduser(), where) for task, folder in given.items()}
        for adapter in found.values():
            adapter.check()
        if found and self.spec.backend.name != "torch":
            raise ConfigurationError(f"{self.where}.backend: adapters run on torch only; use 'torch'")
        return found

    @property
    def _own_folders(self) -> dict[str, Path]:
        given: Mapping[str, str] = getattr(self.options, "heads", {})  # not all classes have the option
        if unknown := sorted(set(given) - set(self.spec.tasks)):
            raise ConfigurationError(f"{self.where}.options.heads.{unknown[0]}: the model has no such task")
        return {task: Path(folder).expanduser() for task, folder in given.items()}

    @property
    def where(self) -> str:
        return f"models.{self.spec.name}"

    # --- in the device process ---

    @property
    def networks(self) -> CheckpointNetworks:
        assert self._loaded is not None, "load() comes before the first batch"
        return self._loaded

    @property
    def passes(self) -> int:
        """The number of backbone passes: a batch needs more than one if its rows differ much in size."""
        return self.networks.passes

    def load(self, device: str) -> None:
        self._refuse_compiling()
        self._device = device
        backend, on_gpu = self._backend, device.startswith("cuda")
        self._loaded = CheckpointNetworks(
            {
                name: CheckpointNetwork(head.checkpoint.folder, head.auto, self.adapters.get(name))
                for name, head in self.heads.items()
            },
            where=self.where,
            device=device,
            backend=backend,
            split=self.SPLIT and (backend.name != "torch" or on_gpu),
        )
        if backend.name != "torch" and device != "cpu":
            problem = f"{backend.name} runs on the CPU here, not on {device}"
            raise ConfigurationError(f"{self.where}.backend: {problem}; use 'torch', or --device ort:PROVIDER")
        if self.onnx is not None:
            self._loaded.give(self._given(self.onnx, backend))
            return
        if self._recall():
            return
        self._loaded.load()
        if backend.name == "torch":
            if on_gpu and self.PADDABLE:
                self._loaded.capture()
        else:
            example, other = self._examples()
            self._loaded.export(example, other, self._cache_file(example), self.spec.folder)

    def _recall(self) -> bool:
        """Load the network of an earlier load, which was compared with the weights, without these. Return whether there
        is one.
        """
        return False

    def _given(self, file: OnnxFile, backend: Backend) -> GivenNetwork:
        from workers.models.huggingface.onnx_source.given_network import GivenNetwork

        classifies = {name: head for name, head in self.heads.items() if "logits" in onnx_file.OUTPUTS[head.auto]}
        return GivenNetwork(file, backend, {name: len(head.checkpoint.labels) for name, head in classifies.items()})

    def try_out(self) -> None:
        """Try samples once for these weights, this code and this backend (`trial`).

        If padding changes the answers, as in networks without a mask, only inputs of equal length share a pass.
        """
        kept = self._kept("trials", str(self._backend))
        if kept.is_file():
            self.equal_lengths = bool(kept.read_text())
            return
        try:
            self._try()
        except trial.DependsOnNeighbours:
            self.equal_lengths = True
            self._try()
            logger.warning("%s: padding changes its answers, so only inputs of equal length share a pass", self.where)
        if self.onnx is not None and self.checkpoint.has_weights:
            self._compare_with_torch(self.onnx)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomically(kept) as part:
            part.write_text("equal lengths" if self.equal_lengths else "")

    def _try(self) -> None:
        trial.run(self, self.where, compared=self.COMPARED, fp32=self._backend.precision == "fp32")
        self.networks.passes = 0

    def _compare_with_torch(self, file: OnnxFile) -> None:
        """Raise ConfigurationError if an ONNX file answers unlike the torch weights beside it."""
        options = {name: own for name, own in self.spec.options.items() if name != "onnx"}
        other = type(self)(replace(self.spec, options=options, backend=REFERENCE))
        other.load("cpu")
        trial.compare(self, other, f"{self.where}: {file.path}", self._backend.precision)
        self.networks.passes = 0

    #: Whether the outputs of equal inputs are equal, so that a trial compares them.
    COMPARED: ClassVar[bool] = True

    #: Whether tracing or capturing takes the backbone without its head even if the model has only one head.
    SPLIT: ClassVar[bool] = False

    #: Whether a pass may have extra rows and masked tokens as padding. A GPU then captures the pass.
    PADDABLE: ClassVar[bool] = False

    def _examples(self) -> tuple[Inputs, Inputs]:
        """Return two batches of different shapes, as inputs of the network, for backends that trace it.

        Raises ConfigurationError if the model cannot be traced.
        """
        raise ConfigurationError(f"{self.where}.backend: this kind of model runs on torch only; use 'torch'")

    def _cache_file(self, example: Inputs) -> Path:
        """The cache file of the network for this backend. Other weights, code or library versions give another file."""
        return self._kept("networks", repr({name: tuple(tensor.shape) for name, tensor in example.items()}))

    def _kept(self, folder: str, further: str) -> Path:
        """Return a file in the cache that belongs to these weights, this code, these versions and `further`."""
        made_by = [importlib.metadata.version(package) for package in ("torch", "transformers")]
        autos = sorted({(str(head.checkpoint.folder), head.auto) for head in self.heads.values()})
        told = repr((self._weights, str(self.spec.folder), autos, made_by, further))
        digest = hashlib.blake2b(told.encode(), digest_size=8)
        for code in sorted((*Path(__file__).parent.rglob("*.py"), *Path(choice.__file__).parent.glob("*.py"))):
            digest.update(code.read_bytes())
        return model_source.cache_folder() / folder / f"{self.spec.name}-{digest.hexdigest()}"


def read_for_each(
    params: Mapping[str, msgspec.Struct], read: Callable[[str, Any], _Read]
) -> tuple[dict[str, _Read], dict[str, InvalidInput]]:
    """Return each task's reading of an input, and the refusals of the tasks that cannot use it.

    Raises the first refusal if all tasks refuse the input.
    """
    found: dict[str, _Read] = {}
    refused: dict[str, InvalidInput] = {}
    for task, chosen in params.items():
        try:
            found[task] = read(task, chosen)
        except InvalidInput as error:
            refused[task] = error
    if not found:
        raise next(iter(refused.values()))
    return found, refused
