"""What the multi-task models share: the backbone runs once for a micro-batch, then each wanted head on its rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from producers.catalogue import Task
from producers.errors import ConfigurationError
from workers.models.model import Array, Arrays, Model, ModelSpec

if TYPE_CHECKING:
    import torch

    #: What a backbone makes of a batch, by name (``hidden``, ``mask``, ``pooled`` …), each with a leading batch axis.
    Features: TypeAlias = dict[str, torch.Tensor]

#: Digits kept of a probability: about what float32 holds, and half the JSON.
_SCORE_DIGITS = 6


class MultiTaskModel(Model):
    """A backbone and heads by task. A model of this kind writes `_load`, `encode` and `_head`.

    `passes` counts how often the backbone ran: once a micro-batch, however many tasks are in it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.passes = 0
        self._device = "cpu"

    # --- in the device process ---

    @abstractmethod
    def _load(self, device: str) -> None:
        """Load backbone and heads onto the device."""

    @abstractmethod
    def encode(self, arrays: Mapping[str, torch.Tensor]) -> Features:
        """Run the backbone."""

    @abstractmethod
    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        """Run one task's head on its rows: probabilities `(rows, labels)`, or vectors `(rows, width)`."""

    def load(self, device: str) -> None:
        self._device = device
        self._load(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        with torch.inference_mode():
            features = self.encode({name: self._tensor(array) for name, array in arrays.items()})
            self.passes += 1
            return {name: self._run_head(name, features, rows) for name, rows in wanted.items()}

    def _run_head(self, name: str, features: Features, rows: Array) -> Array:
        output: Array = self._head(self.spec.tasks[name], features, self._tensor(rows)).float().cpu().numpy()
        return output

    def _tensor(self, array: Array) -> torch.Tensor:
        import torch

        # shared memory may be read-only, which torch would not respect
        owned = array if array.flags.writeable else array.copy()
        return torch.from_numpy(owned).to(self._device)

    # --- in the parent process ---

    @abstractmethod
    def labels(self, task: Task) -> Sequence[str]:
        """Return a classification task's labels, in the order of its head's output."""

    def finish(self, task: Task, output: Array, params: msgspec.Struct) -> Any:
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
        return [{"label": labels[n], "score": round(float(output[n]), _SCORE_DIGITS)} for n in best]
