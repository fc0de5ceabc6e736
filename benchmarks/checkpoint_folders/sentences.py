"""Folders that sentence-transformers itself saves: networks, poolings, layers, prompts, and modules of other sorts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_folders import texts, tokenizers
from benchmarks.checkpoint_folders.folders import Case

_KIND = "feature-extraction"
_ROWS = {row[0]: row for row in texts.CLASSIFIERS}

#: The modules behind the pooling, by a function of the vector's width.
Layers = Callable[[int], Sequence[Any]]


def saved(
    folder: Path,
    *,
    network: str = "bert",
    pooling: Any = "mean",
    layers: Layers = lambda _: (),
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> None:
    """Save a network with its pooling and layers. `files` are changed afterwards: JSON objects get these values."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with tempfile.TemporaryDirectory() as base:
        texts.make(Path(base), row=_ROWS[network], auto="AutoModel", **own or {})
        first = Transformer(base)
        width = first.get_embedding_dimension()
        model = SentenceTransformer(
            modules=[first, Pooling(width, pooling), *layers(width)], device="cpu", **settings or {}
        )
        model.save(str(folder), create_model_card=False)
    for name, values in (files or {}).items():
        file = folder / name
        there = json.loads(file.read_text()) if file.is_file() else {}
        changed = {name: value for name, value in (there | values).items() if value is not None}
        file.write_text(json.dumps(changed))


def _dense(*widths: int, **settings: Any) -> Layers:
    from sentence_transformers.base.modules import Dense, Normalize

    def layers(width: int) -> Sequence[Any]:
        import torch

        torch.manual_seed(5)
        ends = (width, *widths)
        made = [Dense(before, after, **settings) for before, after in zip(ends, widths, strict=False)]
        return [*made, Normalize()]

    return layers


def _layer_norm(width: int) -> Sequence[Any]:
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    return [LayerNorm(width)]


def _dropout(_: int) -> Sequence[Any]:
    from sentence_transformers.sentence_transformer.modules import Dropout

    return [Dropout(0.2)]


def _legacy(*modes: str) -> dict[str, Any]:
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"pooling_mode": None} | {f"pooling_mode_{name}": name in modes for name in names}


def _of(name: str, **how: Any) -> Case:
    return Case(f"st-{name}", _KIND, partial(saved, **how), {"normalize": False, "truncation": True}, {}, "sentences")


def cases() -> Iterator[Case]:
    import torch

    for mode in ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"):
        yield _of(f"bert-{mode}", pooling=mode)
    yield _of("bert-cls+max+mean", pooling=("cls", "max", "mean"))
    yield _of("bert-lasttoken-legacy", files={"1_Pooling/config.json": _legacy("lasttoken")})
    yield _of("bert-mean+cls-legacy", files={"1_Pooling/config.json": _legacy("cls_token", "mean_tokens")})
    for network, mode in (
        ("modernbert", "cls"), ("qwen3", "lasttoken"), ("llama", "lasttoken"), ("mpnet", "mean"), ("xlm-roberta", "cls"),
        ("distilbert", "max"), ("roberta", "weightedmean"), ("gte", "cls"), ("gpt2", "lasttoken"),("nomic_bert", "mean"),
    ):  # fmt: skip
        pad = {"llama": "</s>", "gpt2": "<|endoftext|>"}.get(network)
        own = {"tokenizer": {"pad_token": pad}} if pad else {}
        yield _of(f"{network}-{mode}", network=network, pooling=mode, own=own)
    legacy = {"1_Pooling/config.json": _legacy("lasttoken")}
    yield _of("qwen3-lasttoken-legacy", network="qwen3", pooling="lasttoken", files=legacy)
    yield _of("bert-dense", layers=_dense(24))
    yield _of("bert-dense2-norm", layers=_dense(24, 8, bias=False, activation_function=torch.nn.Identity()))
    yield _of("gemma3-dense2", network="gemma3_text", layers=_dense(48, 32, activation_function=torch.nn.Identity()),
              own={"use_bidirectional_attention": True})  # fmt: skip
    yield _of("bert-layernorm", layers=_layer_norm)
    yield _of("bert-dropout", layers=_dropout)
    prompts = {"query": "what is asked: ", "document": "a text: "}
    yield _of("bert-prompt-default", settings={"prompts": prompts, "default_prompt_name": "query"})
    yield _of("bert-prompts-no-default", settings={"prompts": prompts})
    yield _of("bert-prompt-not-pooled", settings={"prompts": prompts, "default_prompt_name": "query"},
              files={"1_Pooling/config.json": {"include_prompt": False}})  # fmt: skip
    yield _of("bert-max-seq-length", files={"sentence_bert_config.json": {"max_seq_length": 24}})
    yield _of("bert-lower-case", files={"sentence_bert_config.json": {"do_lower_case": True}})
    yield _of("bert-truncate-dim", settings={"truncate_dim": 16})
    yield _of("t5-encoder", network="t5", own={"architectures": ["T5EncoderModel"]})
    yield Case("st-clip", _KIND, _clip, {"normalize": False}, {}, "sentences")
    yield Case("st-static", _KIND, _static, {"normalize": False}, {}, "sentences")
    yield Case("st-splade", _KIND, _splade, {"normalize": False}, {}, "sentences")
    yield Case("st-0-transformer", _KIND, _inner, {"normalize": False}, {}, "sentences")
    yield Case("st-router", _KIND, _router, {"normalize": False}, {}, "sentences")
    yield Case("st-word-embeddings", _KIND, _words, {"normalize": False}, {}, "sentences")
    for name, labels in (("one-label", 1), ("three-labels", 3)):
        yield Case(f"cross-encoder-{name}", "text-classification", partial(_cross_encoder, labels), {"top_k": None})
    yield Case("cross-encoder-nli", "zero-shot-classification", partial(_cross_encoder, 3),
               {"candidate_labels": ["sport", "a film"]})  # fmt: skip


def _save(folder: Path, *modules: Any) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(modules), device="cpu").save(str(folder), create_model_card=False)


def _static(folder: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as base:
        size = tokenizers.write(Path(base), "Bert")["vocab_size"]
        tokenizer = Tokenizer.from_file(str(Path(base) / "tokenizer.json"))
    import numpy as np

    weights = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
    _save(folder, StaticEmbedding(tokenizer, embedding_weights=weights))


def _splade(folder: Path) -> None:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    with tempfile.TemporaryDirectory() as base:
        texts.make(Path(base), row=_ROWS["bert"], auto="AutoModelForMaskedLM")
        network = Transformer(base, transformer_task="fill-mask")
        SparseEncoder(modules=[network, SpladePooling()], device="cpu").save(str(folder), create_model_card=False)


def _inner(folder: Path) -> None:
    """Move the network into a folder of its own, as earlier versions did."""
    saved(folder)
    inner = folder / "0_Transformer"
    inner.mkdir()
    stay = ("modules.json", "config_sentence_transformers.json", "README.md")
    for file in [file for file in folder.iterdir() if file.is_file() and file.name not in stay]:
        file.rename(inner / file.name)
    file = folder / "modules.json"
    modules = json.loads(file.read_text())
    modules[0]["path"] = "0_Transformer"
    file.write_text(json.dumps(modules))


def _router(folder: Path) -> None:
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with tempfile.TemporaryDirectory() as base:
        texts.make(Path(base), row=_ROWS["bert"], auto="AutoModel")
        sides = [[Transformer(base), Pooling(32, mode)] for mode in ("mean", "cls")]
        _save(folder, Router.for_query_document(query_modules=sides[0], document_modules=sides[1]))


def _words(folder: Path) -> None:
    import numpy as np
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    words = sorted({word for text in tokenizers.texts()[:50] for word in text.lower().split()})
    weights = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    first = WordEmbeddings(WhitespaceTokenizer(words), weights)
    _save(folder, first, Pooling(16, "mean"))


def _clip(folder: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import CLIPModel

    from benchmarks.checkpoint_folders import pictures

    with tempfile.TemporaryDirectory() as base:
        pictures.clip(Path(base))
        _save(folder, CLIPModel(base))


def _cross_encoder(labels: int, folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    names: dict[str, Any] = texts.NLI if labels == 3 else {"num_labels": labels}
    with tempfile.TemporaryDirectory() as base:
        texts.make(Path(base), row=_ROWS["bert"], auto="AutoModelForSequenceClassification", **names)
        CrossEncoder(base, device="cpu").save_pretrained(str(folder), create_model_card=False)
