"""The structure of backbones that can be cut: the place of their layers, and the matrices of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from producers.wire.errors import ConfigurationError
from workers.training.loop.recipe import Compression, Split


@dataclass(frozen=True, slots=True)
class Layout:
    """A backbone of one stack of layers after `embeddings`.

    `columns` and `rows` are the matrices of a layer, by the axis of their cut. Behind the stack is at most a `pooler`.
    """

    layers: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]


_BERT = Layout(
    layers="encoder.layer",
    columns=("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"),
    rows=("attention.output.dense", "output.dense"),
)
_DISTILBERT = Layout(
    layers="transformer.layer",
    columns=("attention.q_lin", "attention.k_lin", "attention.v_lin", "ffn.lin1"),
    rows=("attention.out_lin", "ffn.lin2"),
)
#: By transformers' `model_type`.
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "distilbert": _DISTILBERT,
}


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """The facts of a network that decide how it can be split. `lower_layers`: heads read layers below the last."""

    model_type: str
    layers: int
    attention_heads: int
    inner: int
    sharing: str = "full"
    lower_layers: bool = False

    @classmethod
    def of(cls, backbone: Path, sharing: str = "full", *, lower_layers: bool = False) -> NetworkShape:
        """Read the facts from a backbone's ``config.json``; its weights are not loaded."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(backbone, local_files_only=True, trust_remote_code=False)
        layers, heads = (getattr(config, name, 0) for name in ("num_hidden_layers", "num_attention_heads"))
        inner = getattr(config, "intermediate_size", 0) or getattr(config, "hidden_dim", 0)
        return cls(config.model_type, layers, heads, inner, sharing, lower_layers)


def check(split: Split, processes: int, shape: NetworkShape, compression: Compression) -> None:
    """Raise ConfigurationError for a combination that PyTorch does not split; see docs/training.md."""
    if split == "rows":
        return
    if processes == 1:
        raise _refused(f"one process has nobody to share {split} with; ask for more")
    if compression != "none":
        problem = f"is of gradients that whole networks exchange; with --split {split} there are none; use none"
        raise ConfigurationError(f"compression: {problem}")
    if split == "layers":
        _check_layers(processes, shape)
    elif split == "stages":
        _check_stages(processes, shape)


def _check_layers(processes: int, shape: NetworkShape) -> None:
    _check_layout("layers", shape)
    if shape.sharing == "lora":
        raise _refused("layers with LoRA's matrices cannot be cut; use states, or sharing = 'full'")
    if shape.attention_heads % processes or shape.inner % processes:
        counts = f"{shape.attention_heads} attention heads and {shape.inner} inner features"
        raise _refused(f"{counts} cannot be divided among {processes} processes; ask for a number that divides both")


def _check_stages(processes: int, shape: NetworkShape) -> None:
    _check_layout("stages", shape)
    if shape.lower_layers:
        raise _refused("the heads of this training read layers of several stages; use rows, layers or states")
    if shape.sharing == "frozen":
        raise _refused("stages of a frozen backbone have nothing to learn; use rows or states")
    if shape.layers < processes:
        raise _refused(f"{shape.layers} layers cannot be {processes} stages; ask for at most {shape.layers} processes")


def _check_layout(split: Split, shape: NetworkShape) -> None:
    if shape.model_type not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise _refused(f"{split} of {shape.model_type!r} cannot be cut, only of {known}; use rows or states")


def _refused(problem: str) -> ConfigurationError:
    return ConfigurationError(f"split: {problem}")


def layers_of(backbone: Any) -> nn.ModuleList:
    """Return the layers of any backbone: its list of modules with the most parameters, or an empty one."""
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda own: sum(p.numel() for p in own.parameters()), default=nn.ModuleList())
