"""Write a small checkpoint of an architecture of transformers: its config made small, random weights, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The sizes of a small network, by the names that configs use.
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "dim", "n_embd", "embedding_size", "emb_dim", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_decoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "moe_intermediate_size"), 48),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 514),
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok",), 2),
}

#: Settings that no small config has: a name with this value is left out.
LEAVE_OUT = object()


@dataclass(frozen=True)
class Case:
    """A checkpoint: `make` writes its folder. It serves `kind` with `params` and `options`.

    `reference` names the function of `references` that answers instead of the kind's usual one.
    """

    name: str
    kind: str
    make: Callable[[Path], object]
    params: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""


def config(model_type: str, **own: Any) -> Any:
    """Return the config of an architecture with small sizes; `own` overrides them."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    class_ = CONFIG_MAPPING[model_type]
    known = class_.__dataclass_fields__
    # a list has a size for each stage
    plain = {name for name, field in known.items() if not isinstance(field.default, tuple | list)}
    sizes = {name: value for name, value in SIZES.items() if name in plain} | own
    return class_(**{name: value for name, value in sizes.items() if value is not LEAVE_OUT})


def network(auto: str, settings: Any, gain: float) -> Any:
    """Return the network that an auto class, or a class by its own name, makes of a config; with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    class_ = getattr(transformers, auto)
    return spread(class_.from_config(settings) if auto.startswith("Auto") else class_(settings), gain)


def spread(network: Any, gain: float) -> Any:
    """Draw weights at which answers differ from input to input; transformers' own give all labels nearly the same
    score. A layer multiplies the size of its input by about `gain`.
    """
    import torch

    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.dim() > 1 and "embed" in name:
                weights.normal_(0, 0.5)
            elif weights.dim() > 1:
                weights.normal_(0, gain / weights[0].numel() ** 0.5)
            elif name.endswith("bias"):
                weights.normal_(0, 0.1)
        network.tie_weights()
    return network.eval()


def save(folder: Path, auto: str, settings: Any, gain: float = 1.5) -> None:
    network(auto, settings, gain).save_pretrained(folder)
