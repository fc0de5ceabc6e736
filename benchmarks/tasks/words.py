"""The catalogue's entries about words: entities, languages, translation by the models that were trained here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.tasks import checkpoints
from producers import Client
from workers.models.sources import model_source
from workers.shipped_heads.text import entity_scores, languages
from workers.shipped_heads.text.teacher import Entity
from workers.shipped_heads.translation import translation_training
from workers.training import data

Plain = Callable[[Sequence[Any], int], object]


def described(count: int) -> list[Any]:
    """Return sentences of package descriptions that the translation was not trained on."""
    return [pair.source for pair in translation_training.read(model_source.cache_folder())["test"][:count]]


def in_many_languages(count: int) -> list[Any]:
    """Return paragraphs of the Declaration of Human Rights in all languages, over and over, each numbered to be
    another text.
    """
    texts = [text for own in _declaration().values() for text in own]
    Random(0).shuffle(texts)
    return [f"{texts[number % len(texts)]} {number}" for number in range(count)]


def _declaration() -> dict[str, list[str]]:
    return languages.declaration(data.pull("declaration", model_source.cache_folder()))


# --- what the fleet is compared with ------------------------------------------------------------


def entities_by_hand(_: Path) -> Plain:
    """The encoder and the head, text by text or in padded batches, and tokens of one type put together."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from workers.models.built_in.multitask import head_file
    from workers.models.built_in.text.text_model import BUILTIN_HEADS

    file = BUILTIN_HEADS / "entities" / head_file.FILE
    module, labels = head_file.load(file).eval(), head_file.read_labels(file)
    source = checkpoints.encoder()
    tokenizer, backbone = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            texts = list(inputs[start : start + batch_size])
            encoded = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
            with torch.inference_mode():
                layers = backbone(**encoded, output_hidden_states=True).hidden_states
                read = {f"tokens.{number}": layer for number, layer in enumerate(layers)}
                written = torch.zeros_like(encoded["input_ids"])  # as long to look up as what is really written
                best = module(read | {"mask": encoded["attention_mask"].bool(), "shapes": written}).argmax(-1)
            found += [[label for label, _ in groupby(labels[n][2:] for n in row)] for row in best.tolist()]
        return found

    return run


def languages_by_hand(folder: Path) -> Plain:
    """The lines that one writes around the weights: text by text, or several together."""
    import torch
    from safetensors.torch import load_file

    from workers.models.built_in.multitask import head_file
    from workers.models.built_in.text.language import ngrams, scores

    tensors = {name: tensor.float() for name, tensor in load_file(folder / head_file.FILE).items()}
    labels = head_file.read_labels(folder / head_file.FILE)

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            bags = [torch.from_numpy(ngrams(text)) for text in inputs[start : start + batch_size]]
            starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
            with torch.inference_mode():
                output = scores(torch.cat(bags), starts, tensors["table"], tensors["out"], tensors["bias"])
            found += [labels[n] for n in output.softmax(-1).argmax(-1)]
        return found

    return run


# --- quality ------------------------------------------------------------------------------------


def entities_found(client: Client) -> tuple[str, float, float]:
    """Judge entities by sentences that a person marked, beside runs of capitalised words."""
    gold = entity_scores.gold()
    texts = [one.text for one in gold]
    found = [
        [Entity(one["start"], one["end"], one["entity_group"]) for one in own]
        for own in _answers(client, "entities", texts)
    ]
    return (
        "F1, 44 marked sentences",
        entity_scores.f1(found, gold),
        entity_scores.f1(entity_scores.capitalised(texts), gold),
    )


def languages_told(client: Client) -> tuple[str, float, float]:
    """Judge languages by a text of which nothing was trained."""
    judged = [(name, text) for name, own in _declaration().items() for text in own if len(text) >= 20]
    found = [own[0]["label"] for own in _answers(client, "language", [text for _, text in judged])]
    right = sum(answer == name for answer, (name, _) in zip(found, judged, strict=True))
    return "accuracy, human rights in 24 languages", right / len(judged), 1 / len(languages.LABELS)


def translated(client: Client) -> tuple[str, float, float]:
    """Judge translations by chrF on sentences of other packages than it was trained on, beside the source as it is."""
    import sacrebleu

    pairs = translation_training.read(model_source.cache_folder())["test"][:200]
    texts, wanted = [pair.source for pair in pairs], [[pair.target for pair in pairs]]
    found = [own["text"] for own in _answers(client, "translation", texts)]
    own, copied = (sacrebleu.corpus_chrf(given, wanted).score for given in (found, texts))
    return "chrF, 200 sentences of other packages", own, copied


def _answers(client: Client, task: str, texts: Sequence[str]) -> list[Any]:
    job = client.submit_many(task, texts)
    job.wait(timeout_s=600)
    found = {row.seq: row.output for row in job.results()}
    return [found[place] for place in range(len(texts))]
