"""Convert weights of other formats to a Hugging Face folder.

A pull runs ``python -m workers.models.converting.convert NAME FROM TO`` in its own process, on files with a verified
sha256.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch


def torchvision_mobilenet_v2(source: Path, target: Path) -> None:
    """Convert torchvision's MobileNetV2 (a ``.pth`` state) and its class names to a transformers folder.

    The two libraries list the same 262 tensors in the same order, under different names; their shapes are compared.
    """
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    [weights] = source.glob("*.pth")
    # weights_only: the pickle may hold tensors and nothing else
    theirs = _tensors(torch.load(weights, map_location="cpu", weights_only=True))
    labels = imagenet_labels(source)
    # torchvision pads evenly and has its own epsilon for batch norm
    config = MobileNetV2Config(
        tf_padding=False, layer_norm_eps=1e-5, id2label=labels, label2id={name: n for n, name in labels.items()}
    )
    model = MobileNetV2ForImageClassification(config)
    ours = _tensors(model.state_dict())
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise ValueError(f"{weights.name} is not torchvision's MobileNetV2: its tensors differ")
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), strict=False)
    model.eval().save_pretrained(target)


def imagenet_labels(source: Path) -> dict[int, str]:
    """Return the names of ImageNet's 1,000 classes by number, from the two WordNet lists in `source`."""
    lines = (source / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines)
    synsets = (source / "imagenet_synsets.txt").read_text("utf-8").split()
    names = [lemmas[synset].strip() for synset in synsets]
    # "crane" is a bird and a machine: names shared by two classes get their WordNet number
    return {n: f"{name} ({synsets[n]})" if names.count(name) > 1 else name for n, name in enumerate(names)}


def _tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def gguf_causal_lm(source: Path, target: Path) -> None:
    """Convert a quantised GGUF file (llama.cpp's) to a transformers folder, with weights in bfloat16.

    transformers reads GGUF in 20 s, so it is converted once. A 4-bit weight has fewer digits than bfloat16.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    [weights] = source.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=weights.name)
    theirs = AutoModelForCausalLM.from_pretrained(source, gguf_file=weights.name, dtype=torch.float32)
    config = theirs.config
    for left_over in ("quantization_config", "_name_or_path"):  # they describe the file, not the network
        config.__dict__.pop(left_over, None)
    # a network loaded from GGUF cannot change its dtype, so its weights are copied into a new one
    model = type(theirs)(config)
    model.load_state_dict(theirs.state_dict())
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def ctranslate2_whisper(source: Path, target: Path) -> None:
    """Convert a Whisper model of CTranslate2 to a transformers folder."""
    from workers.models.converting import ctranslate2

    ctranslate2.convert(source, target)


def tfjs_nanodet(source: Path, target: Path) -> None:
    """Convert NanoDet's TensorFlow.js weights, with COCO's names, for `workers.models.built_in.vision.nanodet`."""
    from safetensors.numpy import save_file

    from workers.models.converting import coco_classes

    [model] = source.glob("*.json")
    weights = {name: values for name, values in _tfjs_constants(model) if values.ndim and values.dtype.kind == "f"}
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors")
    labels = {str(number): name for number, name in enumerate(coco_classes.NAMES)}
    (target / "config.json").write_text(json.dumps({"model_type": "nanodet", "id2label": labels}, indent=1), "utf-8")


def _tfjs_constants(model: Path) -> Iterator[tuple[str, Array]]:
    """Yield the constants in the files beside a model's ``.json``. Raises ValueError for unsupported types.

    Floats stored in half precision stay in half precision.
    """
    for group in json.loads(model.read_text("utf-8"))["weightsManifest"]:
        content, place = b"".join((model.parent / path).read_bytes() for path in group["paths"]), 0
        for weight in group["weights"]:
            kept = weight.get("quantization", {}).get("dtype", weight["dtype"])
            if kept not in ("float16", "float32", "int32"):
                raise ValueError(f"{weight['name']}: constants of type {kept} are not supported")
            values = np.frombuffer(content, kept, math.prod(weight["shape"]), place).reshape(weight["shape"])
            place += values.nbytes
            yield weight["name"], values


CONVERTERS = {
    "ctranslate2-whisper": ctranslate2_whisper,
    "gguf-causal-lm": gguf_causal_lm,
    "tfjs-nanodet": tfjs_nanodet,
    "torchvision-mobilenet-v2": torchvision_mobilenet_v2,
}

if __name__ == "__main__":
    CONVERTERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
