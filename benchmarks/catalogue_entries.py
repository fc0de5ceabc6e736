"""What benchmarks.catalogue measures: one entry a task, with its inputs and what the fleet is compared with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import checkpoints, recordings
from benchmarks.workload import mixed_texts
from producers import Client
from workers import settings

#: What a plain run is: inputs and the batch size to answers.
Plain = Callable[[Sequence[Any], int], object]

LABELS = ["business", "sport", "politics"]
TOPICS = ["business", "entertainment", "politics", "sport", "tech"]


@dataclass(frozen=True)
class Entry:
    """A task to measure: `inputs` makes so many different ones, `plain` loads what the fleet is compared with.

    `weights` says what model it is and whose weights they are. `declared` is what the task's table in fleet.toml has besides its
    kind, if the task is not a built-in one. `quality`, if there is something to say, measures the task on held-out data: what was measured,
    the result, and the baseline.
    """

    task: str
    kind: str
    model: str
    weights: str
    inputs: Callable[[int], list[Any]]
    plain: Callable[[Path], Plain]
    count: int = 200
    params: Mapping[str, Any] = field(default_factory=dict)
    quality: Callable[[Client], tuple[str, float, float]] | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)


# --- inputs ---------------------------------------------------------------------------------------


def texts(count: int) -> list[Any]:
    return [text[:1500] for text in mixed_texts(count)]


def masked(count: int) -> list[Any]:
    return [f"{text.rpartition(' ')[0] or text} [MASK]" for text in texts(count)]


def questions(count: int) -> list[Any]:
    return [{"question": "Who said what, and when?", "context": text} for text in texts(count)]


def pictures(count: int) -> list[Any]:
    """Return so many different parts of real photographs, as JPEG files."""
    from PIL import Image

    from workers.models import sources

    source = settings.load(environment={}).data["photographs"]["source"]
    folder = sources.pull(sources.parse(source, where="photographs"), sources.cache_folder()).folder
    photographs = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.*g"))]
    random = Random(0)
    found = []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        side = min(whole.size) * 3 // 4
        left, top = random.randint(0, whole.width - side), random.randint(0, whole.height - side)
        made = io.BytesIO()
        whole.crop((left, top, left + side, top + side)).save(made, "JPEG", quality=90)
        found.append(made.getvalue())
    return found


# --- what the fleet is compared with ------------------------------------------------------------


def pipeline(kind: str, *, head: str = "", images: bool = False, **params: Any) -> Callable[[Path], Plain]:
    """Return what loads transformers' pipeline: over a model's folder, or that of one of its heads."""

    def load(folder: Path) -> Plain:
        import transformers

        own = folder / "heads" / head if head else folder
        plain = transformers.pipeline(kind, model=str(own), device="cpu")

        def run(inputs: Sequence[Any], batch_size: int) -> object:
            given = _pictures(inputs) if images else _lines(inputs)
            return list(plain(given, batch_size=batch_size, **params))

        return run

    return load


def _lines(inputs: Sequence[Any]) -> Iterator[Any]:
    yield from inputs


def _pictures(inputs: Sequence[bytes]) -> Iterator[Any]:
    from PIL import Image

    yield from (Image.open(io.BytesIO(one)) for one in inputs)


def answers_by_hand(folder: Path) -> Plain:
    """Questions one by one, or in padded batches: transformers has no pipeline for them any more."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "heads" / "answer")
    network = AutoModelForQuestionAnswering.from_pretrained(folder / "heads" / "answer").eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            own = inputs[start : start + batch_size]
            asked, contexts = [one["question"] for one in own], [one["context"] for one in own]
            encoded = tokenizer(
                asked, contexts, padding=True, truncation="only_second", max_length=512, return_tensors="pt"
            )
            with torch.inference_mode():
                output = network(**encoded)
            first, last = output.start_logits.argmax(-1), output.end_logits.argmax(-1)
            found += [
                tokenizer.decode(ids[a : b + 1]) for ids, a, b in zip(encoded["input_ids"], first, last, strict=True)
            ]
        return found

    return run


def likeness_by_hand(folder: Path) -> Plain:
    """The loop one writes around a sentence encoder: each text and the labels' sentences, the labels once."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = checkpoints.encoder()
    tokenizer, network = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()

    def vectors(texts: Sequence[str]) -> Any:
        encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            hidden = network(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        labels = vectors([f"This example is {label}." for label in TOPICS])
        parts = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
        return [scores for part in parts for scores in (20 * vectors(part) @ labels.T).softmax(-1).tolist()]

    return run


def topics_by_likeness(client: Client) -> tuple[str, float, float]:
    """Judge zero-shot classification on BBC articles, of which nothing was trained: labels and template as they come to mind."""
    from workers.models import sources
    from workers.training import data

    examples = Random(0).sample(list(data.read("topic", sources.cache_folder())), 500)
    params = {"truncation": True, "candidate_labels": TOPICS, "hypothesis_template": "A news article about {}."}
    job = client.submit_many("likeness", [example.text[:2000] for example in examples], params=params)
    job.wait(timeout_s=600)
    best = {row.seq: row.output[0]["label"] for row in job.results()}
    right = sum(best[place] == example.label for place, example in enumerate(examples))
    most = max(sum(example.label == topic for example in examples) for topic in TOPICS)
    return "accuracy, 500 BBC articles in 5 topics:", right / len(examples), most / len(examples)


def writing_by_hand(folder: Path) -> Plain:
    """Texts one by one, or in padded batches: transformers has no pipeline for them any more."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found: list[str] = []
        for start in range(0, len(inputs), batch_size):
            own = list(inputs[start : start + batch_size])
            encoded = tokenizer(own, padding=True, truncation=True, max_length=512, return_tensors="pt")
            with torch.inference_mode():
                made = network.generate(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    max_new_tokens=16,
                    do_sample=False,
                )
            found += tokenizer.batch_decode(made, skip_special_tokens=True)
        return found

    return run


# --- the entries ----------------------------------------------------------------------------------

MINILM = "all-MiniLM-L6-v2 (22.7 M), built-in"
RANDOM_HEAD = "all-MiniLM-L6-v2 (22.7 M), random head"
CUT = {"truncation": True}

ENTRIES: tuple[Entry, ...] = (
    Entry("vector", "feature-extraction", "reader", MINILM, texts, pipeline("feature-extraction", truncation=True), params=CUT),
    Entry("label", "text-classification", "reader", RANDOM_HEAD, texts,
          pipeline("text-classification", head="label", truncation=True, max_length=512), params=CUT),
    Entry("about", "zero-shot-classification", "reader", RANDOM_HEAD, texts,
          pipeline("zero-shot-classification", head="about", candidate_labels=LABELS), 60,
          CUT | {"candidate_labels": LABELS}),
    Entry("likeness", "zero-shot-classification", "text", MINILM, texts, likeness_by_hand, params=CUT | {"candidate_labels": TOPICS},
          quality=topics_by_likeness),
    Entry("entities", "token-classification", "reader", RANDOM_HEAD, texts,
          pipeline("token-classification", head="entities", aggregation_strategy="simple")),
    Entry("answer", "question-answering", "reader", RANDOM_HEAD, questions, answers_by_hand),
    Entry("fill", "fill-mask", "reader", RANDOM_HEAD, masked, pipeline("fill-mask", head="fill")),
    Entry("shows", "image-classification", "classifier", "ViT-tiny (5.5 M), random", pictures,
          pipeline("image-classification", images=True)),
    Entry("objects", "object-detection", "detector", "YOLOS-tiny (6.5 M), random", pictures,
          pipeline("object-detection", images=True), 60),
    Entry("parts", "image-segmentation", "segmenter", "SegFormer-B0 (3.7 M), random", pictures,
          pipeline("image-segmentation", images=True), 24),
    Entry("shorter", "summarization", "writer", "T5 (22 M), random", texts, writing_by_hand, 60,
          CUT | {"max_new_tokens": 16}),
    Entry("transcript", "automatic-speech-recognition", "speech", "Whisper tiny.en (38 M), built-in", recordings.clips,
          recordings.pipeline("automatic-speech-recognition", generate_kwargs={"num_beams": 1}), 12,
          quality=recordings.words_wrong),
    Entry("sounds", "audio-classification", "listener", "AST-tiny (5.6 M), random", recordings.clips,
          recordings.pipeline("audio-classification"), 24),
)  # fmt: skip
