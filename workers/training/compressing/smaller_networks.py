"""Cut layers, inner features, attention heads and width out of a network: the rest is a network of the same class.

The result is saved and loaded like any folder of transformers, so its config must be able to express it: every layer
keeps equally many heads and inner features.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint_networks import replay
from workers.models.huggingface.text.task_attention import TaskAttention
from workers.training.compressing.task_networks import TaskNetworks


@dataclass(frozen=True, slots=True)
class NetworkLayout:
    """The names of a layer's parts within it. `width` says whether the width may change."""

    layers: str = "encoder.layer"
    queries: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    attended: str = "attention.output.dense"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    inner_size: str = "intermediate_size"
    width: bool = True


_BERT = NetworkLayout()

#: The layouts of architectures by `model_type`.
LAYOUTS: Mapping[str, NetworkLayout] = {
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": NetworkLayout(width=False),  # its relative positions have a width of their own
    "distilbert": NetworkLayout(
        "transformer.layer",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
        "hidden_dim",
    ),
    "electra": NetworkLayout(width=False),  # its embeddings have a width of their own
    "mpnet": NetworkLayout(
        queries=("attention.attn.q", "attention.attn.k", "attention.attn.v"), attended="attention.attn.o", width=False
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of an encoder: its layers, attention heads, inner features of a layer, and width."""

    layers: int
    heads: int
    inner: int
    width: int

    @classmethod
    def of(cls, config: Any) -> Size:
        inner = getattr(config, layout_of(config).inner_size)
        return cls(
            layers=config.num_hidden_layers, heads=config.num_attention_heads, inner=inner, width=config.hidden_size
        )

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.heads} heads, {self.inner} inner, {self.width} wide"


def layout_of(config: Any) -> NetworkLayout:
    """Return the layout of an architecture. Raises ConfigurationError for an unknown one."""
    if config.model_type not in LAYOUTS:
        raise ConfigurationError(f"{config.model_type}: is not pruned; the architectures are {', '.join(LAYOUTS)}")
    return LAYOUTS[config.model_type]


def check(config: Any, now: Size, wanted: Size) -> None:
    """Raise ConfigurationError, by the name of the field, for a size that the config cannot express or that is not
    smaller than it is now.
    """
    for name in ("layers", "heads", "inner", "width"):
        if not 1 <= getattr(wanted, name) <= getattr(now, name):
            raise ConfigurationError(f"{name}: must be 1 to {getattr(now, name)}, not {getattr(wanted, name)}")
    each = now.width // now.heads
    if wanted.heads * each != wanted.width:
        problem = f"{config.model_type}'s config has no width of a head, so width is heads times {each}"
        raise ConfigurationError(
            f"heads: {problem}; ask for heads and width in this proportion ({wanted.heads} and {wanted.heads * each})"
        )
    if wanted.width != now.width and not layout_of(config).width:
        raise ConfigurationError(f"width: {config.model_type}'s heads and width are not pruned; prune layers or inner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The places that are kept: layers of the backbone; for each kept layer its heads and inner features; the width."""

    layers: Sequence[int]
    heads: Sequence[Sequence[int]]
    inner: Sequence[Sequence[int]]
    width: Sequence[int]

    @classmethod
    def all_of(cls, size: Size) -> Kept:
        layers = range(size.layers)
        return cls(
            layers=layers,
            heads=[range(size.heads)] * size.layers,
            inner=[range(size.inner)] * size.layers,
            width=range(size.width),
        )


def cut(networks: TaskNetworks, kept: Kept) -> TaskNetworks:
    """Return smaller networks that have the kept weights. The given ones stay as they are."""
    heads = {
        task: _cut_attention(head, kept) if networks.is_attention(task) else _cut(head, kept)
        for task, head in networks.heads.items()
    }
    return TaskNetworks(networks.readers, _cut(networks.backbone, kept), heads).eval()


def _cut(network: Any, kept: Kept) -> Any:
    """Return a backbone, or a head with its replay, as a smaller network of its class."""
    config = copy.deepcopy(network.config)
    layout, before = layout_of(config), Size.of(config)
    config.num_hidden_layers = len(kept.layers)
    config.num_attention_heads = len(kept.heads[0])
    config.hidden_size = len(kept.width)
    setattr(config, layout.inner_size, len(kept.inner[0]))
    smaller = type(network)(config)
    if network.base_model is not network:
        setattr(smaller, smaller.base_model_prefix, replay())
    elif getattr(network, "pooler", None) is None:
        smaller.pooler = None
    theirs = network.state_dict()
    layer = re.compile(rf"^({re.escape(layout.layers)}\.)(\d+)\.(.*)\.(weight|bias)$")
    state = {}
    for name, tensor in smaller.state_dict().items():
        found = layer.match(name)
        if found is None:
            state[name] = _narrowed(theirs[name], tensor.shape, kept.width)
            continue
        number = int(found[2])
        source = theirs[f"{found[1]}{kept.layers[number]}.{found[3]}.{found[4]}"]
        axes = _axes(found[3], layout, kept, number, before.width // before.heads)
        state[name] = _taken(source, axes) if axes else _narrowed(source, tensor.shape, kept.width)
    smaller.load_state_dict(state)
    return smaller.to(torch.float32)


def _cut_attention(module: Any, kept: Kept) -> TaskAttention:
    """Return a head of `argosy train` that reads the kept width."""
    tensors = dict(module.state_dict())
    for name, axis in (("norm.weight", 0), ("norm.bias", 0), ("narrow.weight", 1)):
        tensors[name] = tensors[name].index_select(axis, torch.tensor(list(kept.width)))
    smaller = TaskAttention.of_shape(tensors)
    smaller.load_state_dict(tensors)
    return smaller


def _axes(
    part: str, layout: NetworkLayout, kept: Kept, number: int, each: int
) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return the places that a part's matrix keeps in its rows and columns; None for a part that only has the width."""
    heads = [head * each + place for head in kept.heads[number] for place in range(each)]
    if part in layout.queries:
        return heads, kept.width
    return {
        layout.attended: (kept.width, heads),
        layout.up: (kept.inner[number], kept.width),
        layout.down: (kept.width, kept.inner[number]),
    }.get(part)


def _taken(tensor: torch.Tensor, axes: tuple[Sequence[int], Sequence[int]]) -> torch.Tensor:
    for axis in range(tensor.ndim):
        tensor = tensor.index_select(axis, torch.tensor(list(axes[axis])))
    return tensor


def _narrowed(tensor: torch.Tensor, shape: torch.Size, width: Sequence[int]) -> torch.Tensor:
    """Return a tensor with only the kept width along the axes that the smaller network has shorter."""
    for axis, (before, after) in enumerate(zip(tensor.shape, shape, strict=True)):
        if before != after:
            tensor = tensor.index_select(axis, torch.tensor(list(width)))
    return tensor
