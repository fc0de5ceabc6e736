"""The networks of a model in the device process: loaded from their folders, one backbone pass for all that share it.

A Hugging Face head (``BertForTokenClassification`` …) is a backbone and a few layers on it, in code of its own. Where several heads
have the same backbone, the backbone runs once, and in each head a `_Replay` stands in its place, which answers with what came of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.wire.errors import ConfigurationError
from workers.models.adapters.lora_folder import Adapter
from workers.models.backends.choice import DTYPES, Backend
from workers.models.huggingface.network_calls import call, rows_of

if TYPE_CHECKING:
    import torch

    from workers.models.adapters.low_rank import Rows
    from workers.models.huggingface.exported import Captured, Exported, Inputs

#: The class of transformers whose output is the backbone's.
BACKBONE = "AutoModel"


@dataclass(frozen=True, slots=True)
class Network:
    """Which class of transformers loads which folder, and the adapter that it was trained with."""

    folder: Path
    auto: str
    adapter: Adapter | None = None


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
        self._adapters = list(dict.fromkeys(network.adapter for network in wanted.values() if network.adapter))
        self._adapter_rows: Rows | None = None
        self._shares = False
        self._stand_in: Exported | Captured | None = None
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
            self._adapt()
            return
        self.config = self._heads[heads[0]].config
        if (
            self._split
            or self._adapters
            or len(heads) > 1
            or any(network.auto == BACKBONE for network in self._wanted.values())
        ):
            self._backbone = self._share_backbone()
            self._shares = True
            self._adapt()

    def export(self, example: Inputs, other: Inputs, cache: Path) -> None:
        """Have the backend run what runs once a batch: the backbone, or the one network that there is.

        `example` and `other` are two batches of different shapes. Raises ConfigurationError where the backend cannot.
        """
        from workers.models.huggingface.exported import Exported

        self._stand_in = Exported(self._first, self._backend, example, other, cache, self._where)
        self._backbone = None  # its weights are the backend's now

    def capture(self) -> None:
        """Have the GPU replay what runs once a batch. With adapters it runs as it is: each pass has other rows of theirs."""
        from workers.models.huggingface.exported import Captured

        if self._adapter_rows is None:
            self._stand_in = Captured(self._first)

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

    @property
    def _first(self) -> Any:
        """What runs once a batch: the backbone, or the one network that there is."""
        return self._backbone if self._shares else self.only

    def adapter_number(self, task: str) -> int:
        """Return which adapter the task's rows go through the backbone with; 0 is none."""
        adapter = self._wanted[task].adapter
        return 0 if adapter is None else 1 + self._adapters.index(adapter)

    def run(
        self, inputs: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], adapters: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Return the output of each wanted task's network for its rows (indices) of the inputs: the backbone runs once.

        `adapters` are the rows' adapter numbers, where there are any.
        """
        self.passes += 1
        if self._adapter_rows is not None:
            self._adapter_rows.set(adapters, self._device)
        features = self._stand_in(inputs) if self._stand_in else call(self._first, inputs)
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
            **_as_adapted(network.adapter),
        )
        # transformers fills what is missing with random numbers, and a warning
        missing = sorted(set(report["missing_keys"]) - _complete(loaded, network.adapter))
        if missing and network.auto == BACKBONE and all(name.startswith("pooler.") for name in missing):
            loaded.pooler, missing = None, []
        if missing:
            problem = f"{network.folder} has no weights for {missing[0]}" + ", …" * (len(missing) > 1)
            raise ConfigurationError(f"{self._where}: {problem}: it was not trained for this kind of task")
        return loaded.eval().to(self._device)

    def _adapt(self) -> None:
        if self._adapters:
            from workers.models.adapters import low_rank

            prefix = next((head.base_model_prefix for head in self._heads.values()), "")
            self._adapter_rows = low_rank.attach(self._backbone, self._adapters, prefix)

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


def _as_adapted(adapter: Adapter | None) -> dict[str, Any]:
    """Return what a network is loaded with so that an adapter's own head fits it."""
    if adapter is None or adapter.labels is None:
        return {}
    return {"num_labels": adapter.labels, "ignore_mismatched_sizes": True}


def _complete(network: Any, adapter: Adapter | None) -> set[str]:
    """Put the tensors that an adapter has whole into its network; return their names. Raises ConfigurationError if one is not its."""
    if adapter is None or not adapter.saved:
        return set()
    from workers.models.adapters import low_rank

    own = low_rank.tensors(adapter)
    saved = {name: own[name] for name in adapter.saved}
    if unknown := network.load_state_dict(saved, strict=False).unexpected_keys:
        raise ConfigurationError(f"{adapter.where}: the model has no {unknown[0]}; was it made for another kind?")
    return set(saved)


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
