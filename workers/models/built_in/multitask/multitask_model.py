"""The base of models with several tasks: the backbone runs once for a micro-batch, then each head on its rows."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError
from workers.models.backends import choice
from workers.models.built_in.multitask import feature_cache
from workers.models.built_in.multitask.feature_cache import FeatureCache
from workers.models.interface.model import CONTENTS, SCORE_DIGITS, Array, Arrays, Model, ModelSpec, Prepared
from workers.models.interface.options import Amount, Options
from workers.models.interface.text_block import BlockAnswers, label_columns
from workers.models.sources import model_source

if TYPE_CHECKING:
    import torch

    from workers.models.backends.compiled_network import Network

    #: A backbone's output for a batch, by name (``hidden``, ``mask``, ``pooled`` …), each with a leading batch axis.
    Features: TypeAlias = dict[str, torch.Tensor]


#: `finish` reads nothing of the item.
_UNPREPARED = Prepared({}, 0, b"")


class MultiTaskOptions(Options, frozen=True):
    """Options of models with several tasks. `feature_cache_mib` is the size of the cache of features on the device."""

    feature_cache_mib: Amount = 0


class MultiTaskModel(Model):
    """A backbone and a head for each task. Subclasses write `_network`, `_example`, `_head` and `labels`.

    `passes` counts the runs of the backbone: once for a micro-batch, whatever the number of its tasks, and never for a
    batch whose rows are all in the cache (option `feature_cache_mib`).
    """

    options_class: ClassVar[type[Options]] = MultiTaskOptions

    tunable = True
    backends = ("torch", "onnxruntime", "openvino")

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.passes = 0
        self.cached_rows = 0
        self._device = "cpu"
        has_cache = isinstance(self.options, MultiTaskOptions)  # the video model has no such option
        self._cache = FeatureCache(self.options.feature_cache_mib * 2**20 if has_cache else 0)
        self._backbone: Network

    # --- in the device process ---

    def _load(self, device: str) -> None:
        """Load the heads onto the device, unless they are part of the network."""

    @abstractmethod
    def _network(self) -> torch.nn.Module:
        """Return the backbone in evaluation mode, in fp32, on the CPU: named tensors in, `Features` out."""

    @abstractmethod
    def _example(self) -> Arrays:
        """Return a small batch of the network's input, for backends that trace the network."""

    @abstractmethod
    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        """Run a task's head on its rows: probabilities `(rows, labels)`, or vectors `(rows, width)`."""

    def load(self, device: str) -> None:
        import torch

        from workers.models.backends import build, compiled_network

        self._device = device
        self._load(device)
        example = {name: torch.from_numpy(array) for name, array in self._example().items()}
        source = compiled_network.Source(self._traced, example, self._cache_file())
        self._backbone = build.build(self.spec.backend, source, device)

    def _traced(self) -> torch.nn.Module:
        """Return the backbone for a backend. Others than torch ask for it once, and keep a file."""
        self.loads_lighter = self.spec.backend.name != "torch"
        return self._network()

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> Features:
        """Run the backbone. The next call may overwrite the result."""
        return self._backbone(arrays)

    @property
    def module(self) -> Any:
        """The network of a model on the `torch` backend, for callers that need gradients."""
        from workers.models.backends.torch_network import TorchNetwork

        assert isinstance(self._backbone, TorchNetwork), "no other backend has gradients"
        return self._backbone.module

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        contents = arrays.pop(CONTENTS, None)
        with torch.inference_mode():
            tensors = {name: self._tensor(array) for name, array in arrays.items()}
            features = self._encoded(tensors) if contents is None else self._from_cache(arrays, tensors, contents)
            return {name: self._run_head(name, features, rows) for name, rows in wanted.items()}

    def _encoded(self, tensors: Mapping[str, torch.Tensor]) -> Features:
        self.passes += 1
        self.cached_rows = 0
        return self.encode(tensors)

    def _from_cache(self, arrays: Arrays, tensors: Features, contents: Array) -> Features:
        """Return the features of all rows; the backbone runs only on rows that are not in the cache."""

        def encode(places: Sequence[int]) -> Features:
            chosen = self._rows_of(arrays, places)
            encoded = self._encoded({name: self._tensor(array) for name, array in chosen.items()})
            return {name: tensor for name, tensor in encoded.items() if name not in arrays}

        keys = [row.tobytes() for row in contents]
        found, self.cached_rows = feature_cache.features(self._cache, keys, self._lengths(arrays), encode)
        return found | tensors

    def _rows_of(self, arrays: Arrays, places: Sequence[int]) -> Arrays:
        """Return some rows of a batch. Models with rows of different lengths also cut surplus padding."""
        return {name: array[list(places)] for name, array in arrays.items()}

    def _lengths(self, arrays: Arrays) -> Sequence[int]:
        """Return the lengths of a batch's rows without padding."""
        return [1] * len(next(iter(arrays.values())))

    def _run_head(self, name: str, features: Features, rows: Array) -> Array:
        output: Array = self._head(self.spec.tasks[name], features, self._tensor(rows)).float().cpu().numpy()
        return output

    def _tensor(self, array: Array) -> torch.Tensor:
        import torch

        # shared memory may be read-only, and torch would write to it all the same
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._device)

    def _cache_file(self) -> Path:
        """Return the path of a backend's compiled network; other weights, code or libraries give another path."""
        networks = (*Path(__file__).parents[1].rglob("*_network.py"), *Path(choice.__file__).parent.glob("*.py"))
        code = [*sorted(networks), Path(inspect.getfile(type(self)))]
        made_by = [importlib.metadata.version(package) for package in ("torch", "transformers")]
        digest = hashlib.blake2b(repr((self._weights, made_by)).encode(), digest_size=8)
        for file in code:
            digest.update(file.read_bytes())
        return model_source.cache_folder() / "networks" / f"{self.spec.name}-{digest.hexdigest()}"

    # --- in the parent process ---

    @property
    def knows_contents(self) -> bool:
        return self._cache.most_bytes > 0

    @cached_property
    def revision(self) -> str:
        return self._weights if self.spec.backend.is_reference else f"{self._weights}+{self.spec.backend}"

    @property
    def _weights(self) -> str:
        """The revision of all weights, whatever the backend."""
        return self.spec.revision

    @abstractmethod
    def labels(self, task: Task) -> Sequence[str]:
        """Return a classification task's labels, in the order of its head's output."""

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return the best labels of probabilities `(labels,)`, or a vector `(width,)`, normalised if asked for."""
        if task.kind.name.endswith("classification"):
            return self._best_labels(task, output, params.top_k)  # type: ignore[attr-defined]
        vector = output.astype(np.float32)
        length = float(np.linalg.norm(vector))
        if params.normalize and length > 0:  # type: ignore[attr-defined]
            vector /= length
        return vector

    def finish_block(self, task: Task, outputs: Array, params: msgspec.Struct) -> BlockAnswers:
        """Return the best labels of probabilities `(texts, labels)`, or vectors `(texts, width)`, like `finish`."""
        if not task.kind.name.endswith("classification"):
            return np.stack([MultiTaskModel.finish(self, task, row, params, _UNPREPARED) for row in outputs])
        labels = self._checked_labels(task, outputs.shape[-1])
        return label_columns(labels, outputs, params.top_k, SCORE_DIGITS)  # type: ignore[attr-defined]

    def _checked_labels(self, task: Task, scores: int) -> Sequence[str]:
        labels = self.labels(task)
        if len(labels) != scores:
            raise ConfigurationError(f"{self.spec.name}.{task.name}: {scores} scores for {len(labels)} labels")
        return labels

    def _best_labels(self, task: Task, output: Array, top_k: int) -> list[dict[str, Any]]:
        labels = self._checked_labels(task, len(output))
        # stable, so that equal scores come in the labels' order
        best = np.argsort(-output, kind="stable")[:top_k]
        return [{"label": labels[n], "score": round(float(output[n]), SCORE_DIGITS)} for n in best]
