"""The networks of a model in the device process: loaded from their folders, one backbone pass for all that share it.

A Hugging Face head (``BertForTokenClassification`` …) is a backbone and a few layers on it, in code of its own. Where several heads
have the same backbone, the backbone runs once, and in each head a `_Replay` stands in its place, which answers with what came of that.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.errors import ConfigurationError
from workers.models.backends.choice import Backend

if TYPE_CHECKING:
    import torch

    from workers.models.huggingface.exported import Exported, Inputs

#: The type that weights are loaded as, by precision.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

#: The class of transformers whose output is the backbone's.
BACKBONE = "AutoModel"


@dataclass(frozen=True, slots=True)
class Network:
    """Which class of transformers loads which folder."""

    folder: Path
    auto: str


class Networks:
    """One network for each task; those of equal folder and class are one."""

    def __init__(
        self, wanted: Mapping[str, Network], *, where: str, device: str, backend: Backend, split: bool = False
    ) -> None:
        """`split` takes the backbone out of its head though there is but one."""
        self._wanted = wanted
        self._where = where
        self._device = device
        self._backend = backend
        self._split = split
        self._heads: dict[Network, Any] = {}
        self._backbone: Any = None
        self._shares = False
        self._exported: Exported | None = None
        self.config: Any = None
        self.passes = 0

    def load(self) -> None:
        """Load all of them. Raises ConfigurationError if a folder lacks a head's weights, or two backbones differ."""
        heads = [network for network in dict.fromkeys(self._wanted.values()) if network.auto != BACKBONE]
        self._heads = {network: self._load(network) for network in heads}
        if not heads:
            self._backbone = self._load(next(iter(self._wanted.values())))
            self._shares = True
            self.config = self._backbone.config
            return
        self.config = self._heads[heads[0]].config
        if self._split or len(heads) > 1 or any(network.auto == BACKBONE for network in self._wanted.values()):
            self._backbone = self._share_backbone()
            self._shares = True

    def export(self, example: Inputs, other: Inputs, cache: Path) -> None:
        """Have the backend run what runs once a batch: the backbone, or the one network that there is.

        `example` and `other` are two batches of different shapes. Raises ConfigurationError where the backend cannot.
        """
        from workers.models.huggingface.exported import Exported

        first = self._backbone if self._shares else self.only
        self._exported = Exported(first, self._backend, example, other, cache, self._where)
        self._backbone = None  # its weights are the backend's now

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, and of the numbers that go in."""
        import torch

        found: torch.dtype = getattr(
            torch, DTYPES[self._backend.precision if self._backend.name == "torch" else "fp32"]
        )
        return found

    def network(self, task: str) -> Any:
        """Return a task's network, its backbone in it or a replay."""
        return self._heads.get(self._wanted[task], self._backbone)

    @property
    def embeddings(self) -> Any:
        """The backbone's table of word embeddings."""
        return (self._backbone or self.only).get_input_embeddings()

    @property
    def only(self) -> Any:
        """The network of a model that has one, to be used otherwise than in one pass."""
        [network] = self._heads.values()
        return network

    def run(self, inputs: Mapping[str, Any], wanted: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the output of each wanted task's network for its rows (indices) of the inputs: the backbone runs once."""
        self.passes += 1
        first = self._backbone if self._shares else self.only
        features = self._exported(inputs) if self._exported else call(first, inputs)
        if not self._shares:
            return {task: rows_of(features, rows) for task, rows in wanted.items()}
        return {task: self._run_head(self._wanted[task], features, inputs, rows) for task, rows in wanted.items()}

    def _run_head(self, wanted: Network, features: Any, inputs: Mapping[str, Any], rows: torch.Tensor) -> Any:
        chosen = rows_of(features, rows)
        if wanted.auto == BACKBONE:
            return chosen
        head = self._heads[wanted]
        getattr(head, head.base_model_prefix).output = chosen
        return call(head, {name: tensor.index_select(0, rows) for name, tensor in inputs.items()})

    def _load(self, network: Network) -> Any:
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()  # a worker's log is no terminal
        loaded, report = getattr(transformers, network.auto).from_pretrained(
            network.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=self.dtype,
            output_loading_info=True,
        )
        # transformers fills what is missing with random numbers, and a warning
        missing = sorted(report["missing_keys"])
        if missing and network.auto == BACKBONE and all(name.startswith("pooler.") for name in missing):
            loaded.pooler, missing = None, []
        if missing:
            problem = f"{network.folder} has no weights for {missing[0]}" + ", …" * (len(missing) > 1)
            raise ConfigurationError(f"{self._where}: {problem}: it was not trained for this kind of task")
        return loaded.eval().to(self._device)

    def _share_backbone(self) -> Any:
        """Take the largest of the heads' backbones, check that the others are the same, and put replays in their places."""
        backbones = [head.base_model for head in self._heads.values()]
        shared = max(backbones, key=lambda backbone: len(backbone.state_dict()))
        for network, head in self._heads.items():
            if difference := _difference(head.base_model, shared):
                problem = f"{network.folder} has another backbone than the model's other heads ({difference} differs)"
                raise ConfigurationError(f"{self._where}: {problem}; make it a model of its own")
            setattr(head, head.base_model_prefix, _replay())
        return shared


def _difference(backbone: Any, shared: Any) -> str:
    """Return the name of a weight that `shared` lacks or has otherwise, or nothing."""
    import torch

    whole = shared.state_dict()
    for name, tensor in backbone.state_dict().items():
        if name not in whole or not torch.equal(tensor, whole[name]):
            return str(name)
    return ""


def _replay() -> Any:
    from torch import nn

    class Replay(nn.Module):
        """Stands where a head has its backbone, and answers with what the shared one has computed."""

        def __init__(self) -> None:
            super().__init__()
            self.output: Any = None

        def forward(self, *_: Any, **__: Any) -> Any:
            return self.output

    return Replay()


def accepted(network: Any) -> Collection[str]:
    """Return the names of a network's inputs."""
    return inspect.signature(network.forward).parameters


def call(network: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a network of transformers with those of the inputs that it knows."""
    known = accepted(network)
    chosen = {name: value for name, value in inputs.items() if name in known}
    if "use_cache" in known:
        chosen["use_cache"] = False
    return network(**chosen)


def rows_of(output: Any, rows: torch.Tensor) -> Any:
    """Return the rows of a network's output: of every tensor in it, however it is nested."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.index_select(0, rows)
    if isinstance(output, tuple):
        return tuple(rows_of(part, rows) for part in output)
    if isinstance(output, dict):  # transformers' ModelOutput is one
        return type(output)(**{name: rows_of(part, rows) for name, part in output.items()})
    return output
