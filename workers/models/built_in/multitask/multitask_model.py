"""What the multi-task models share: the backbone runs once for a micro-batch, then each wanted head on its rows."""

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
from workers.models.built_in.multitask import feature_cache
from workers.models.built_in.multitask.feature_cache import FeatureCache
from workers.models.interface.model import CONTENTS, SCORE_DIGITS, Array, Arrays, Model, ModelSpec, Prepared
from workers.models.interface.options import Amount, Options
from workers.models.sources import model_source

if TYPE_CHECKING:
    import torch

    from workers.models.backends.compiled_network import Network

    #: What a backbone makes of a batch, by name (``hidden``, ``mask``, ``pooled`` …), each with a leading batch axis.
    Features: TypeAlias = dict[str, torch.Tensor]


class MultiTaskOptions(Options, frozen=True):
    """`feature_cache_mib` is how much is kept of features on the device."""

    feature_cache_mib: Amount = 0


class MultiTaskModel(Model):
    """A backbone and heads by task. A model of this kind writes `_load`, `encode` and `_head`.

    `passes` counts how often the backbone ran: once a micro-batch, however many tasks are in it, and not at all where all its
    rows' features are still known, as far as the option `feature_cache_mib` keeps them.
    """

    options_class: ClassVar[type[Options]] = MultiTaskOptions

    tunable = True
    backends = ("torch", "onnxruntime", "openvino")

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.passes = 0
        self.cached_rows = 0
        self._device = "cpu"
        keeps = isinstance(self.options, MultiTaskOptions)  # the video model has no such option
        self._cache = FeatureCache(self.options.feature_cache_mib * 2**20 if keeps else 0)
        self._backbone: Network

    # --- in the device process ---

    def _load(self, device: str) -> None:
        """Load the heads onto the device, where the network does not hold them."""

    @abstractmethod
    def _network(self) -> torch.nn.Module:
        """Return the backbone in evaluation mode, in fp32, on the CPU: named tensors in, `Features` out."""

    @abstractmethod
    def _example(self) -> Arrays:
        """Return a small batch of what the network takes, for the backends that trace it."""

    @abstractmethod
    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        """Run one task's head on its rows: probabilities `(rows, labels)`, or vectors `(rows, width)`."""

    def load(self, device: str) -> None:
        import torch

        from workers.models.backends import build, compiled_network

        self._device = device
        self._load(device)
        example = {name: torch.from_numpy(array) for name, array in self._example().items()}
        source = compiled_network.Source(self._network, example, self._cache_file())
        self._backbone = build.build(self.spec.backend, source, device)

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> Features:
        """Run the backbone. What it returns may be overwritten by the next call."""
        return self._backbone(arrays)

    @property
    def module(self) -> Any:
        """The network of a model that was loaded on torch, for who needs its gradients."""
        from workers.models.backends.torch_network import TorchNetwork

        assert isinstance(self._backbone, TorchNetwork), "no other backend has gradients"
        return self._backbone.module

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        contents = arrays.pop(CONTENTS, None)
        with torch.inference_mode():
            tensors = {name: self._tensor(array) for name, array in arrays.items()}
            features = self._encoded(tensors) if contents is None else self._looked_up(arrays, tensors, contents)
            return {name: self._run_head(name, features, rows) for name, rows in wanted.items()}

    def _encoded(self, tensors: Mapping[str, torch.Tensor]) -> Features:
        self.passes += 1
        self.cached_rows = 0
        return self.encode(tensors)

    def _looked_up(self, arrays: Arrays, tensors: Features, contents: Array) -> Features:
        """Return the features of all rows, of which the backbone runs on those alone that are not known."""

        def encode(places: Sequence[int]) -> Features:
            chosen = self._rows_of(arrays, places)
            encoded = self._encoded({name: self._tensor(array) for name, array in chosen.items()})
            return {name: tensor for name, tensor in encoded.items() if name not in arrays}

        keys = [row.tobytes() for row in contents]
        found, self.cached_rows = feature_cache.features(self._cache, keys, self._lengths(arrays), encode)
        return found | tensors

    def _rows_of(self, arrays: Arrays, places: Sequence[int]) -> Arrays:
        """Return some rows of a batch. Models whose rows differ in length cut what is then padding alone."""
        return {name: array[list(places)] for name, array in arrays.items()}

    def _lengths(self, arrays: Arrays) -> Sequence[int]:
        """Return the lengths of a batch's rows without padding."""
        return [1] * len(next(iter(arrays.values())))

    def _run_head(self, name: str, features: Features, rows: Array) -> Array:
        output: Array = self._head(self.spec.tasks[name], features, self._tensor(rows)).float().cpu().numpy()
        return output

    def _tensor(self, array: Array) -> torch.Tensor:
        import torch

        # shared memory may be read-only, which torch would not respect
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._device)

    def _cache_file(self) -> Path:
        """Where a backend keeps what it made of this very network: other weights, code or libraries, another file."""
        code = [*sorted(Path(__file__).parents[1].rglob("*_network.py")), Path(inspect.getfile(type(self)))]
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
        """The revision of all weights, whatever they run on."""
        return self.spec.revision

    @abstractmethod
    def labels(self, task: Task) -> Sequence[str]:
        """Return a classification task's labels, in the order of its head's output."""

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return the best labels of probabilities `(labels,)`, or a vector `(width,)`, of length 1 if `normalize` asks
        for it.
        """
        if task.kind.name.endswith("classification"):
            return self._best_labels(task, output, params.top_k)  # type: ignore[attr-defined]
        vector = output.astype(np.float32)
        length = float(np.linalg.norm(vector))
        if params.normalize and length > 0:  # type: ignore[attr-defined]
            vector /= length
        return vector

    def _best_labels(self, task: Task, output: Array, top_k: int) -> list[dict[str, Any]]:
        labels = self.labels(task)
        if len(labels) != len(output):
            raise ConfigurationError(f"{self.spec.name}.{task.name}: {len(output)} scores for {len(labels)} labels")
        # stable, so that equal scores come in the labels' order
        best = np.argsort(-output, kind="stable")[:top_k]
        return [{"label": labels[n], "score": round(float(output[n]), SCORE_DIGITS)} for n in best]
