"""Hugging Face folders to measure: real architectures at their published sizes, made here, as there may be no hub.

What has weights that this project pulls uses them; the rest is random, which takes just as long to compute, and only
that is measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Heads on the pulled MiniLM: the class of transformers, and what its config needs.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("BertForSequenceClassification", {"num_labels": 5}),
    "inference": (
        "BertForSequenceClassification",
        {
            "num_labels": 3,
            "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
            "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
        },
    ),
    "entities": (
        "BertForTokenClassification",
        {"num_labels": 5, "id2label": {0: "O", 1: "B-A", 2: "I-A", 3: "B-B", 4: "I-B"}},
    ),
    "answers": ("BertForQuestionAnswering", {}),
    "masks": ("BertForMaskedLM", {}),
}


def encoder() -> Path:
    """Return the folder of the pulled MiniLM."""
    return _pulled("text")


def head(folder: Path, name: str) -> Path:
    """Write MiniLM with a random head."""
    import torch
    import transformers

    class_, config = HEADS[name]
    torch.manual_seed(0)
    source = encoder()
    network = getattr(transformers, class_).from_pretrained(source, **config)
    network.save_pretrained(folder)
    for file in source.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


def classifier(folder: Path) -> Path:
    """Write ViT-tiny for images of 224 x 224."""
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 100}
    return _image_model(folder, "ViTForImageClassification", "ViTImageProcessorPil", sizes)


def detector(folder: Path) -> Path:
    """Write YOLOS-tiny, for images whose short side is 256."""
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": [256, 384]}
    settings = {"size": {"shortest_edge": 256, "longest_edge": 384}}
    return _image_model(
        folder, "YolosForObjectDetection", "YolosImageProcessorPil", sizes | {"num_labels": 91}, settings
    )


def segmenter(folder: Path) -> Path:
    """Write SegFormer-B0 with 150 classes."""
    return _image_model(folder, "SegformerForSemanticSegmentation", "SegformerImageProcessorPil", {"num_labels": 150})


def watcher(folder: Path) -> Path:
    """Write VideoMAE of ViT-tiny's width, for 16 frames of 112 x 112."""
    sizes = {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "image_size": 112,
        "num_labels": 100,
    }
    settings = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
    return _image_model(folder, "VideoMAEForVideoClassification", "VideoMAEImageProcessorPil", sizes, settings)


def writer(folder: Path) -> Path:
    """Write a T5 of half T5-small's width, with MiniLM's tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30522,
        d_model=256,
        d_kv=32,
        d_ff=1024,
        num_layers=4,
        num_heads=8,
        decoder_start_token_id=0,
        eos_token_id=102,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    for file in encoder().glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


def listener(folder: Path) -> Path:
    """Write an Audio Spectrogram Transformer of DeiT-tiny's size, for ten seconds of sound."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 50}
    transformers.ASTForAudioClassification(transformers.ASTConfig(**sizes)).save_pretrained(folder)
    transformers.ASTFeatureExtractor().save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "classifier": classifier,
    "finder": detector,
    "listener": listener,
    "segmenter": segmenter,
    "watcher": watcher,
    "writer": writer,
}


def _image_model(
    folder: Path, class_: str, processor: str, sizes: dict[str, Any], settings: dict[str, Any] | None = None
) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    network = getattr(transformers, class_)
    network(network.config_class(**sizes)).save_pretrained(folder)
    getattr(transformers, processor)(**(settings or {})).save_pretrained(folder)
    return folder


def _pulled(model: str) -> Path:
    from workers import settings
    from workers.models.sources import model_source

    source = settings.load(environment={}).models[model].source
    return model_source.pull(model_source.parse(source, where=model), model_source.cache_folder()).folder
