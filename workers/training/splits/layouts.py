"""The structure of backbones that can be cut: the place of their layers, and the matrices of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from producers.wire.errors import ConfigurationError
from workers.training.loop.recipe import Compression, Split


@dataclass(frozen=True, slots=True)
class Layout:
    """A backbone of stacks of layers after `embeddings`; only a single stack can be stages.

    `columns` and `rows` are the matrices of a layer, by the axis of their cut. `after` are the modules behind the
    stack, beside a `pooler`.
    """

    stacks: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    embeddings: str = "embeddings"
    after: tuple[str, ...] = ()


_BERT = Layout(
    stacks=("encoder.layer",),
    columns=("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"),
    rows=("attention.output.dense", "output.dense"),
)
_DISTILBERT = Layout(
    stacks=("transformer.layer",),
    columns=("attention.q_lin", "attention.k_lin", "attention.v_lin", "ffn.lin1"),
    rows=("attention.out_lin", "ffn.lin2"),
)
_ATTENTIONS = ("self_attn", "encoder_attn")
_BART = Layout(
    stacks=("model.encoder.layers", "model.decoder.layers"),
    columns=(*(f"{name}.{one}_proj" for name in _ATTENTIONS for one in "qkv"), "fc1"),
    rows=(*(f"{name}.out_proj" for name in _ATTENTIONS), "fc2"),
)
_LLAMA = Layout(
    stacks=("model.layers",),
    columns=(*(f"self_attn.{one}_proj" for one in "qkv"), "mlp.gate_proj", "mlp.up_proj"),
    rows=("self_attn.o_proj", "mlp.down_proj"),
    embeddings="model.embed_tokens",
    after=("model.norm", "lm_head"),
)
#: Encoders, by transformers' `model_type`.
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "distilbert": _DISTILBERT,
}
#: Models that write, with their output layer.
WRITING_LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("bart", "marian", "pegasus"), _BART),
    **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA),
}


def layout_of(encoder: Any) -> Layout:
    """Return the layout of a training's backbone."""
    known = WRITING_LAYOUTS if getattr(encoder, "writes", False) else LAYOUTS
    return known[encoder.backbone.config.model_type]


#: The settings with numbers of attention heads, and of inner features; 0 divides nothing.
_HEADS = (
    "num_attention_heads", "num_key_value_heads", "encoder_attention_heads", "decoder_attention_heads"
)  # fmt: skip
_INNER = ("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim")


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """The facts of a network that decide how it can be split.

    `attention_heads` and `inner` are the largest numbers that divide those of all layers. `lower_layers`: heads read
    layers below the last. `writes`: it has its output layer, which is `tied` if it is the table of the embeddings.
    """

    model_type: str
    layers: int
    attention_heads: int
    inner: int
    sharing: str = "full"
    lower_layers: bool = False
    writes: bool = False
    tied: bool = False

    @classmethod
    def of(
        cls, backbone: Path, sharing: str = "full", *, lower_layers: bool = False, writes: bool = False
    ) -> NetworkShape:
        """Read the facts from a backbone's ``config.json``; its weights are not loaded."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(backbone, local_files_only=True, trust_remote_code=False)
        heads, inner = (math.gcd(*(getattr(config, name, None) or 0 for name in names)) for names in (_HEADS, _INNER))
        tied = writes and bool(getattr(config, "tie_word_embeddings", False))
        layers = getattr(config, "num_hidden_layers", 0)
        return cls(config.model_type, layers, heads, inner, sharing, lower_layers, writes, tied)


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
    layout = _check_layout("stages", shape)
    if len(layout.stacks) > 1:
        raise _refused("stages of an encoder with a decoder: each layer of it reads the encoder; use rows or states")
    if shape.tied and shape.sharing == "full":
        remedy = "use rows or states, or sharing = 'lora'"
        raise _refused(f"the first and the last stage would share the table of embeddings, which learns; {remedy}")
    if shape.lower_layers:
        raise _refused("the heads of this training read layers of several stages; use rows, layers or states")
    if shape.sharing == "frozen":
        raise _refused("stages of a frozen backbone have nothing to learn; use rows or states")
    if shape.layers < processes:
        raise _refused(f"{shape.layers} layers cannot be {processes} stages; ask for at most {shape.layers} processes")


def _check_layout(split: Split, shape: NetworkShape) -> Layout:
    layouts = WRITING_LAYOUTS if shape.writes else LAYOUTS
    if shape.model_type not in layouts:
        known = ", ".join(layouts)
        raise _refused(f"{split} of {shape.model_type!r} cannot be cut, only of {known}; use rows or states")
    return layouts[shape.model_type]


def _refused(problem: str) -> ConfigurationError:
    return ConfigurationError(f"split: {problem}")


def layers_of(backbone: Any) -> list[nn.Module]:
    """Return the layers of any backbone: its list of modules with the most parameters, and that of its decoder."""
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    lists.sort(key=lambda own: -sum(parameter.numel() for parameter in own.parameters()))
    config = getattr(backbone, "config", None)  # networks of rows and series have none
    count = 2 if getattr(config, "is_encoder_decoder", False) else 1
    return [layer for own in lists[:count] for layer in own]
