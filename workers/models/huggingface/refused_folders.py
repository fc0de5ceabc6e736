"""Reasons why a folder cannot be served: missing files, and folders that transformers cannot load."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

#: The most characters of a reason that transformers gives.
_LONGEST_REASON = 400

#: Heads whose first axis has a value for each label.
_LABELLED = re.compile(r"(^|\.)(classifier|score|class_labels_classifier|(classifier|classification_head)\.out_proj)\.")

#: Plain reasons for errors of transformers, by a part of their text.
_REASONS = {
    "Unrecognized configuration class": "transformers has no network of this architecture for the kind of the task",
    "requires the Torchvision library": "its image processor is only made for torchvision, which is not used here",
}

#: The most bytes of a file with the settings of a quantisation.
_MOST_BYTES = 2**20

#: Types of the tensors of quantised weights.
_QUANTISED = ("F8_E4M3", "F8_E5M2", "F4", "I8", "U8", "I32")

_SAVED_AGAIN = "load it with transformers and save it again (save_pretrained), which writes safetensors"

#: Other weights than safetensors that a folder may have, by their files, with the remedy.
OTHER_WEIGHTS = (
    ("pytorch_model.bin (pickle, which is never read)", "pytorch_model*.bin", _SAVED_AGAIN),
    ("an adapter", "adapter_model.*", "name it in options.adapters, and its base model as the source"),
    ("an ONNX model", "**/*.onnx", "name the file in the source, as onnx = …, for a kind that is served from it"),
    ("TensorFlow weights", "tf_model.h5", "name a revision with safetensors"),
    ("Flax weights", "flax_model.msgpack", "name a revision with safetensors"),
    ("a GGUF file", "*.gguf", "name the folder of the model that it was made from"),
)

#: Files with the settings of quantised weights, of AutoGPTQ, AutoAWQ and NVIDIA's ModelOpt, each with a name in it. A
#: ``quantize_config.json`` of ONNX files, which transformers.js writes, lacks that name.
_QUANTISED_BY = {"quantize_config.json": "bits", "quant_config.json": "w_bit", "hf_quant_config.json": ""}


def quantised(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the method by which a folder's weights are quantised, or an empty string."""
    from safetensors import SafetensorError, safe_open

    for name in ("quantization_config", "compression_config"):
        if told := config.get(name):
            return str(told.get("quant_method") or told.get("format") or name if isinstance(told, dict) else name)
    for name, setting in _QUANTISED_BY.items():
        if (folder / name).is_file() and setting in _names(folder / name):
            return name
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118
                    tensor = opened.get_slice(name)
                    if "weight" in name and len(tensor.get_shape()) > 1 and tensor.get_dtype() in _QUANTISED:
                        return f"{name} is of type {tensor.get_dtype()}"
        except (OSError, SafetensorError):  # reported when the weights are loaded
            continue
    return ""


def _names(file: Path) -> Collection[str]:
    """Return the names in a small JSON object and the empty name; only that of a file that cannot be read."""
    try:
        found = json.loads(file.read_text("utf-8")) if file.stat().st_size < _MOST_BYTES else {}
    except (OSError, ValueError, RecursionError):
        found = {}
    return {"", *found} if isinstance(found, dict) else {""}


def without_weights(folder: Path) -> tuple[str, str]:
    """Return the weights of another format that a folder has, in words, and the remedy."""
    found = [(name, remedy) for name, pattern, remedy in OTHER_WEIGHTS if any(folder.glob(pattern))]
    if not found and (other := sorted(folder.glob("*.safetensors"))):
        return f", only {other[0].name}, whose name transformers does not look for", _SAVED_AGAIN
    if not found:
        return "", "pull it (argosy models pull), or correct the source"
    return f", only {' and '.join(name for name, _ in found)}", found[0][1]


def without_config(folder: Path) -> tuple[str, str] | None:
    """Return the nature of a folder without a ``config.json`` in words, and the remedy; None if unknown."""
    if (folder / "modules.json").is_file():
        return _sentence_modules(folder)
    if (folder / "adapter_config.json").is_file():
        return (
            "is an adapter without its base model",
            "name the base as the source, and this folder in options.adapters",
        )
    if (folder / "model_index.json").is_file():
        return (
            "is a pipeline of diffusers",
            "give it a task of the kind text-to-image, image-to-image or unconditional-image-generation",
        )
    weights = without_weights(folder)
    return (f"has no config.json{weights[0]}", weights[1]) if weights[0] else None


def module_kind(path: str) -> str:
    """Return the name of a class of sentence-transformers, or the whole path of a class of somebody else's code."""
    return path.rpartition(".")[2] if path.startswith("sentence_transformers.") else path


def _sentence_modules(folder: Path) -> tuple[str, str] | None:
    try:
        first = json.loads((folder / "modules.json").read_text("utf-8"))[0]
        kind, path = module_kind(first["type"]), str(first["path"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if kind != "Transformer":
        return f"begins with the module {kind} (modules.json), which is not served", "use one with a Transformer"
    again = "save it again with sentence-transformers, which puts the network into the folder itself"
    return f"has its network in {path}, as old versions saved it", again


def reason(folder: Path, config: Mapping[str, Any], error: Exception) -> str:
    """Return the reason for which transformers cannot load a folder, and the remedy if there is one."""
    said = " ".join(str(error).split()) or type(error).__name__
    if config.get("auto_map") and ("does not recognize" in said or "trust_remote_code" in said):
        return "it needs code of its own (auto_map in config.json), which is never run; use a model without such code"
    if "does not recognize" in said:
        return f"the installed transformers does not know the model type {config.get('model_type')!r}"
    if "ignore_mismatched_sizes" in said:
        return f"the sizes of the weights are a mismatch for config.json{_labels(folder, config)}"
    plain = next((ours for theirs, ours in _REASONS.items() if theirs in said), "")
    damaged = "; its weights are cut off or damaged, so pull them again" * (type(error).__name__ == "SafetensorError")
    return plain or f"{type(error).__name__}: {said[:_LONGEST_REASON]}{damaged}"


def _labels(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the number of labels in both, if it is not the same."""
    from safetensors import safe_open

    named = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            for name in filter(_LABELLED.search, opened.keys()):
                shape = opened.get_slice(name).get_shape()
                if shape and shape[0] != named:
                    return f", which names {named} labels where {name} has {shape[0]}; correct id2label"
    return ""
