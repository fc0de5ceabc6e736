"""A sentence-transformers folder beyond its network: pooling, further layers, prompts and limits.

``modules.json`` lists the modules. The poolings and layers compute as those of sentence-transformers 6.2; a module of
another kind is refused by name. A folder without ``modules.json`` is pooled as ``1_Pooling`` says, else by the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.refused_folders import module_kind

if TYPE_CHECKING:
    import torch

#: The poolings by their names before sentence-transformers 5.4, in the order of the concatenated vectors.
_EARLIER = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

#: The functions from the tokens' vectors to the text's vector.
POOLINGS = tuple(_EARLIER.values())

#: The layers that are served, and those that change nothing when a model is used.
_LAYERS = ("Dense", "LayerNorm", "Normalize", "Dropout")

_ACTIVATIONS = ("torch.nn.modules.activation.", "torch.nn.modules.linear.Identity")

#: The functions of two vectors that say how alike they are.
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

#: Settings of the network in ``sentence_bert_config.json`` that are served with these values only.
_NETWORK = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings", "processing_kwargs": {}}

#: Arguments in ``sentence_bert_config.json``, in the old and the new form, that change no vector beyond rounding.
_HARMLESS = (
    *("dtype", "torch_dtype", "attn_implementation", "trust_remote_code", "use_safetensors", "add_pooling_layer"),
    *("padding_side", "use_fast", "low_cpu_mem_usage", "device_map"),
)

#: Settings of a layer that are served with these values only.
_SERVED = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding", "use_residual": False}


@dataclass(frozen=True, slots=True)
class PooledLayer:
    """A layer on the pooled vectors: its kind, its folder and its settings."""

    kind: str
    folder: Path
    settings: Mapping[str, Any]

    def load(self, where: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the layer's function. Raises ConfigurationError if its weights are missing or do not fit."""
        from torch import nn
        from torch.nn.functional import normalize

        if self.kind == "Normalize":
            return lambda vectors: normalize(vectors, p=2, dim=-1)
        if self.kind == "Dropout":
            return lambda vectors: vectors
        if self.kind == "LayerNorm":
            norm: nn.Module = _filled(nn.LayerNorm(self.settings["dimension"]), "norm", self.folder, where)
            return norm
        settings = self.settings
        linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
        activation = getattr(nn, str(settings.get("activation_function", "Tanh")).rpartition(".")[2])()
        return nn.Sequential(_filled(linear, "linear", self.folder, where), activation).eval()


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """The folder's own way from the tokens' vectors to the text's vector. `prompts` are the texts put before a text,
    `width` is the number of values that are kept, and `similarity` compares two vectors.
    """

    poolings: tuple[str, ...]
    layers: tuple[PooledLayer, ...]
    prompts: Mapping[str, str]
    default_prompt: str | None
    width: int | None
    pools_prompt: bool
    similarity: str


def read(checkpoint: Checkpoint) -> SentenceModules:
    """Read the folder's files. Raises ConfigurationError, which names a module or a setting that is not served."""
    modules = _listed(checkpoint)
    pooling: Mapping[str, Any] = {}
    layers = []
    for place, (kind, path) in enumerate(modules):
        if place == 0 and kind == "Transformer" and not path.strip("."):
            continue
        if place == 1 and kind == "Pooling":
            pooling = checkpoint.read(f"{path}/config.json")
        elif place > 1 and kind in _LAYERS:
            layers.append(_layer(checkpoint, kind, path))
        else:
            problem = (
                f"the module {kind} ({path or 'the folder itself'}) of modules.json is not served as number {place}"
            )
            served = f"served are a Transformer in the folder itself, Pooling, then {', '.join(_LAYERS)}"
            raise ConfigurationError(f"{checkpoint.where}: {problem}; {served}")
    if len(modules) == 1:
        raise ConfigurationError(f"{checkpoint.where}: modules.json has no Pooling; set options.pooling and remove it")
    if modules:
        _check_network(checkpoint)
    else:
        pooling = checkpoint.read_if_there("1_Pooling/config.json")
    sentences = checkpoint.read_if_there("config_sentence_transformers.json")
    return SentenceModules(
        _poolings(pooling, checkpoint.where),
        tuple(layers),
        {name: text for name, text in (sentences.get("prompts") or {}).items() if isinstance(text, str)},
        sentences.get("default_prompt_name"),
        sentences.get("truncate_dim"),
        bool(pooling.get("include_prompt", True)),
        _similarity(sentences, checkpoint.where),
    )


def pooled(hidden: torch.Tensor, mask: torch.Tensor, poolings: Sequence[str]) -> torch.Tensor:
    """Return the texts' vectors, `(texts, width)`, from their tokens' vectors, `(texts, tokens, width)`.

    `mask`, `(texts, tokens)`, is 0 for padding. Several poolings give their vectors one after another.
    """
    import torch

    return torch.cat([_POOL[pooling](hidden, mask) for pooling in poolings], dim=-1)


def _cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, mask.to(hidden.dtype))


def _mean_sqrt(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, mask.cumsum(1).to(hidden.dtype) * mask)


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def _weighted(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    weights = weights.unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


_POOL: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


# --- the files ------------------------------------------------------------------------------------


def _listed(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return the kind and the folder of each module in ``modules.json``; nothing without that file."""
    if not (checkpoint.folder / "modules.json").is_file():
        return []
    found = checkpoint.read_json("modules.json")
    try:
        return [(module_kind(module["type"]), module["path"]) for module in found]
    except (TypeError, KeyError, AttributeError) as error:
        problem = "modules.json is not the list that sentence-transformers writes"
        raise ConfigurationError(f"{checkpoint.where}: {problem} ({type(error).__name__}: {error})") from error


def _check_network(checkpoint: Checkpoint) -> None:
    """Raise ConfigurationError if the folder runs its network, or its tokenizer, in a way that is not served."""
    settings = checkpoint.sentence_settings
    changes = [name for name, served in _NETWORK.items() if settings.get(name) not in (None, served)]
    given = settings.get("modality_config") or {"text": {}}
    text = given.get("text") if isinstance(given, dict) else None
    if not isinstance(text, dict) or text.get("method", "forward") != "forward":
        changes.append("modality_config")
    for name in (
        f"{part}_{form}" for part in ("model", "config", "tokenizer", "processor") for form in ("args", "kwargs")
    ):
        arguments = settings.get(name) or {}
        own = arguments if isinstance(arguments, dict) else {"": arguments}
        changes += [f"{name}.{argument}" for argument in own if argument not in _HARMLESS]
    if changes:
        problem = f"sentence_bert_config.json: {changes[0]} is not served"
        raise ConfigurationError(f"{checkpoint.where}: {problem}; use sentence-transformers itself")


def _similarity(settings: Mapping[str, Any], where: str) -> str:
    name = settings.get("similarity_fn_name") or "cosine"
    if name not in SIMILARITIES:
        served = ", ".join(SIMILARITIES)
        problem = f"config_sentence_transformers.json: similarity_fn_name {name!r} is not served; served are {served}"
        raise ConfigurationError(f"{where}: {problem}")
    return str(name)


def _poolings(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = config.get("pooling_mode") or [name for key, name in _EARLIER.items() if config.get(key)] or "mean"
    poolings = (given,) if isinstance(given, str) else tuple(given)
    if unknown := [pooling for pooling in poolings if pooling not in POOLINGS]:
        served = ", ".join(POOLINGS)
        raise ConfigurationError(f"{where}: the folder's pooling {unknown[0]!r} is not served; served are {served}")
    return poolings


def _layer(checkpoint: Checkpoint, kind: str, path: str) -> PooledLayer:
    settings = checkpoint.read_if_there(f"{path}/config.json")
    for name, served in _SERVED.items():
        if settings.get(name) not in (None, served):
            problem = f"{path}/config.json: {name} = {settings[name]!r} is not served, only {served!r}"
            raise ConfigurationError(f"{checkpoint.where}: {problem}")
    activation = str(settings.get("activation_function", _ACTIVATIONS[0]))
    if kind == "Dense" and not activation.startswith(_ACTIVATIONS):
        problem = f"{path}/config.json: activation_function {activation} is none of torch's, and is not run"
        raise ConfigurationError(f"{checkpoint.where}: {problem}")
    return PooledLayer(kind, checkpoint.folder / path, settings)


def _filled(module: Any, prefix: str, folder: Path, where: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / "model.safetensors")
        module.load_state_dict({name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = f"{folder / 'model.safetensors'} has no weights for the layer: {' '.join(str(error).split())}"
        raise ConfigurationError(f"{where}: {problem}; save the folder again with sentence-transformers") from error
    return module.eval().requires_grad_(requires_grad=False)
