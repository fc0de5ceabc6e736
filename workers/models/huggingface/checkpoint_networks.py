"""The networks of a model in the device process: loaded from their folders; heads with equal backbones share a pass.

A Hugging Face head (``BertForTokenClassification`` …) is a backbone with a few layers on top, and its `forward` calls
the backbone. If several heads have the same backbone, the backbone runs once. In each head a `Replay` takes the
backbone's place and returns the output of that run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.wire.errors import ConfigurationError
from workers.models.adapters.lora_folder import Adapter
from workers.models.backends.choice import DTYPES, Backend
from workers.models.huggingface.checkpoint import Checkpoint, loading
from workers.models.huggingface.network_calls import call, rows_of

if TYPE_CHECKING:
    import torch

    from workers.models.adapters.low_rank import AdapterRows
    from workers.models.huggingface.exported import Exported, Inputs, LinearHead

#: The transformers class whose output is the backbone's output.
BACKBONE = "AutoModel"


@dataclass(frozen=True, slots=True)
class CheckpointNetwork:
    """The folder of a network, the transformers class that loads it, and the adapter that it was trained with."""

    folder: Path
    auto: str
    adapter: Adapter | None = None


class CheckpointNetworks:
    """The loaded network of each task. Tasks with equal `CheckpointNetwork` share it."""

    def __init__(
        self,
        wanted: Mapping[str, CheckpointNetwork],
        *,
        where: str,
        device: str,
        backend: Backend,
        split: bool = False,
    ) -> None:
        """`split` separates the backbone from its head even if the model has a single head."""
        self._wanted = wanted
        self._where = where
        self._device = device
        self._backend = backend
        self._split = split
        self._heads: dict[CheckpointNetwork, Any] = {}
        self._backbone: Any = None
        self._adapters = list(dict.fromkeys(network.adapter for network in wanted.values() if network.adapter))
        self._adapter_rows: AdapterRows | None = None
        self._shares = False
        self._stand_in: Callable[[Inputs], Any] | None = None
        self.traced: Exported | None = None
        self.config: Any = None
        self.passes = 0

    def load(self) -> None:
        """Load all networks. Raises ConfigurationError if a folder lacks a head's weights or two backbones differ."""
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

    def give(self, network: Callable[[Inputs], Any]) -> None:
        """Take the network of an ONNX file, which serves all tasks, in place of weights."""
        from transformers import AutoConfig

        folder = next(iter(self._wanted.values())).folder
        with loading(folder, self._where):
            self.config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._stand_in = network

    def export(self, example: Inputs, other: Inputs, cache: Path, folder: Path | None = None) -> None:
        """Move the part that runs once per batch, the backbone or the only network, to the backend.

        `example` and `other` are two batches of different shapes. `folder` may have the backend's file already. Raises
        ConfigurationError if the backend cannot run it.
        """
        from workers.models.huggingface.exported import Exported

        self.traced = self._stand_in = Exported(self._first, self._backend, example, other, cache, self._where, folder)
        self._backbone = None  # the backend now owns its weights

    def linear_heads(self, inputs: Inputs) -> dict[str, LinearHead] | None:
        """Return the transformers heads of a traced backbone by task, or None if one is more than a matrix."""
        from workers.models.huggingface.exported import linear_head

        assert self.traced is not None
        features = self.traced(inputs)
        found: dict[str, LinearHead] = {}
        for task, wanted in self._wanted.items():
            if wanted.auto != BACKBONE:
                head = linear_head(self._heads[wanted], features, inputs)
                if head is None:
                    return None
                found[task] = head
        return found

    def recall(self, network: Callable[[Inputs], Any], heads: Mapping[str, LinearHead]) -> None:
        """Take the backbone's network, which an earlier load has compared with the weights, and its heads."""
        self._stand_in, self._shares = network, True
        self._heads = {self._wanted[task]: head for task, head in heads.items()}

    def capture(self) -> None:
        """Capture the part that runs once per batch as CUDA graphs. With adapters, whose rows differ, do nothing."""
        from workers.models.huggingface.exported import Captured

        if self._adapter_rows is None:
            self._stand_in = Captured(self._first)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the inputs."""
        import torch

        found: torch.dtype = getattr(
            torch, DTYPES[self._backend.precision if self._backend.name == "torch" else "fp32"]
        )
        return found

    def network(self, task: str) -> Any:
        """Return a task's network; it contains the backbone or a replay."""
        return self._heads.get(self._wanted[task], self._backbone)

    @property
    def embeddings(self) -> Any:
        """The backbone's table of word embeddings."""
        return (self._backbone or self.only).get_input_embeddings()

    @property
    def only(self) -> Any:
        """The only network of the model, for uses other than a single pass."""
        [network] = self._heads.values()
        return network

    @property
    def _first(self) -> Any:
        """The part that runs once per batch: the backbone, or the only network."""
        return self._backbone if self._shares else self.only

    def adapter_number(self, task: str) -> int:
        """Return the number of the adapter for the task's rows; 0 means no adapter."""
        adapter = self._wanted[task].adapter
        return 0 if adapter is None else 1 + self._adapters.index(adapter)

    def shares_adapters(self, inputs: Inputs) -> bool:
        """Return whether rows of different adapters can share a pass. `inputs` are an example of at least two rows."""
        import torch

        from workers.models.adapters.low_rank import NotByRow

        try:
            with torch.inference_mode():
                self.run(inputs, {}, [0, *[1] * (_count(inputs) - 1)])
        except NotByRow:
            return False
        return True

    def run(
        self, inputs: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], adapters: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Run the backbone once; return each wanted task's network output for its rows (indices into the inputs).

        `adapters` has the adapter number of each row, if the model has adapters.
        """
        self.passes += 1
        if self._adapter_rows is not None:
            self._adapter_rows.set(adapters, next(iter(inputs.values())).shape[1], self._device)
        features = self._stand_in(inputs) if self._stand_in is not None else call(self._first, inputs)
        if not self._shares:
            return {task: rows_of(features, rows, _count(inputs)) for task, rows in wanted.items()}
        return {task: self._run_head(self._wanted[task], features, inputs, rows) for task, rows in wanted.items()}

    def _run_head(self, wanted: CheckpointNetwork, features: Any, inputs: Mapping[str, Any], rows: torch.Tensor) -> Any:
        chosen = rows_of(features, rows, _count(inputs))
        if wanted.auto == BACKBONE:
            return chosen
        head = self._heads[wanted]
        if not hasattr(head, "base_model_prefix"):  # a matrix of an earlier load
            return head(chosen)
        backbone = getattr(head, head.base_model_prefix)
        backbone.output = chosen
        found = call(head, {name: tensor.index_select(0, rows) for name, tensor in inputs.items()})
        if own := sorted(backbone.inputs - inputs.keys()):
            problem = (
                f"{type(head).__name__} gives its backbone an input of its own ({own[0]}), so they cannot be apart"
            )
            raise ConfigurationError(f"{self._where}: {problem}; make the task a model of its own, on the CPU")
        return found

    def _load(self, network: CheckpointNetwork) -> Any:
        auto = network.auto
        names = Checkpoint(network.folder, self._where).config.get("architectures") or [""]
        if auto == BACKBONE and str(names[0]).endswith("EncoderModel"):
            auto = "AutoModelForTextEncoding"  # the encoder alone of a network from text to text, such as T5
        options = _as_adapted(network.adapter)
        loaded, report = read_network(auto, network.folder, self._where, self.dtype, **options)
        if getattr(loaded.config, "pad_token_id", 0) is None:
            # a decoder that classifies takes no batch without a padding token, and skips it at the end of a text: with
            # a number that no token has it reads the last position, and the trial finds that it must not be padded
            loaded.config.pad_token_id = -1
        # transformers only warns about missing weights and fills them with random numbers
        missing = sorted(set(report["missing_keys"]) - _complete(loaded, network.adapter))
        if missing and network.auto == BACKBONE and all(name.startswith("pooler.") for name in missing):
            loaded.pooler, missing = None, []
        refuse_missing(missing, report["unexpected_keys"], loaded, network.folder, self._where)
        return loaded.eval().to(self._device)

    def _adapt(self) -> None:
        if self._adapters:
            from workers.models.adapters import low_rank

            prefix = next((head.base_model_prefix for head in self._heads.values()), "")
            self._adapter_rows = low_rank.attach(self._backbone, self._adapters, prefix)

    def _share_backbone(self) -> Any:
        """Choose the heads' largest backbone, check that the others equal it, and put replays in their places."""
        backbones = [head.base_model for head in self._heads.values()]
        shared = max(backbones, key=lambda backbone: len(backbone.state_dict()))
        for network, head in self._heads.items():
            if difference := _difference(head.base_model, shared):
                problem = f"the backbone in {network.folder} differs from the model's other heads (in {difference})"
                raise ConfigurationError(f"{self._where}: {problem}; make it a separate model")
            setattr(head, head.base_model_prefix, replay())
        return shared


def read_network(
    auto: str, folder: Path, where: str, dtype: torch.dtype, **options: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Return the network of a folder by a class of transformers, and transformers' report of missing and other weights.

    Raises ConfigurationError, which names the setting `where`.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # a worker's log is not a terminal
    with loading(folder, where):
        network, report = getattr(transformers, auto).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **options,
        )
    return network, report


def refuse_missing(missing: Sequence[str], unexpected: Collection[str], network: Any, folder: Path, where: str) -> None:
    """Raise ConfigurationError if a folder lacks weights of its network, which transformers has drawn at random.

    `unexpected` are the folder's weights of other names.
    """
    if missing:
        is_a = " and ".join(getattr(network.config, "architectures", None) or ["model"])
        problem = f"{folder}, a {is_a}, has no weights for {missing[0]}" + ", …" * (len(missing) > 1)
        cause = "the checkpoint was not trained for this kind of task"
        if longer := sorted(name for name in unexpected if name.endswith(f".{missing[0]}")):
            prefix = longer[0].removesuffix(missing[0])
            cause = f"it has {longer[0]} instead; save the network without the prefix {prefix!r}"
        raise ConfigurationError(f"{where}: {problem}: {cause}")


def _count(inputs: Mapping[str, Any]) -> int:
    return len(next(iter(inputs.values())))


def _as_adapted(adapter: Adapter | None) -> dict[str, Any]:
    """Return the loading options that make a network fit an adapter's own head."""
    if adapter is None or adapter.labels is None:
        return {}
    return {"num_labels": adapter.labels, "ignore_mismatched_sizes": True}


def _complete(network: Any, adapter: Adapter | None) -> set[str]:
    """Copy an adapter's fully saved tensors into its network, and return their names.

    Raises ConfigurationError if the network lacks a tensor of that name, or has one of another shape.
    """
    if adapter is None or not adapter.saved:
        return set()
    from workers.models.adapters import low_rank

    own = low_rank.tensors(adapter)
    saved = {name: own[name] for name in adapter.saved}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if other := [name for name, tensor in saved.items() if shapes.get(name, tensor.shape) != tensor.shape]:
        problem = f"its {other[0]} has the shape {tuple(saved[other[0]].shape)}, the model's {tuple(shapes[other[0]])}"
        raise ConfigurationError(f"{adapter.where}: {problem}; was it made for another model?")
    if unknown := network.load_state_dict(saved, strict=False).unexpected_keys:
        raise ConfigurationError(f"{adapter.where}: the model has no {unknown[0]}; was it made for another kind?")
    return set(saved)


def _difference(backbone: Any, shared: Any) -> str:
    """Return the name of a weight that is missing in `shared` or differs there, or an empty string."""
    import torch

    whole = shared.state_dict()
    for name, tensor in backbone.state_dict().items():
        if name not in whole or not torch.equal(tensor, whole[name]):
            return str(name)
    return ""


def replay() -> Any:
    """Return a module for a backbone's place in a head."""
    import torch
    from torch import nn

    class Replay(nn.Module):
        """Replaces the backbone inside a head: returns the output that the shared backbone has computed.

        `inputs` are the names of the tensors that the head gives the backbone.
        """

        def __init__(self) -> None:
            super().__init__()
            self.output: Any = None
            self.inputs: frozenset[str] = frozenset()

        def forward(self, *_: Any, **named: Any) -> Any:
            self.inputs = frozenset(name for name, value in named.items() if isinstance(value, torch.Tensor))
            return self.output

    return Replay()
