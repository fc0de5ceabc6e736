"""What benchmarks.catalogue measures: one entry a task, with its inputs and what the fleet is compared with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.tasks import checkpoints, fused, moving, recordings, words
from benchmarks.tasks import pictures as drawings
from benchmarks.word_search import WordSearch
from benchmarks.workload import mixed_texts
from producers import Client
from producers.documents import Document, passages
from workers import settings
from workers.models.sources import model_source
from workers.training import data

#: What a plain run is: inputs and the batch size to answers.
Plain = Callable[[Sequence[Any], int], object]

LABELS = ["business", "sport", "politics"]
TOPICS = ["business", "entertainment", "politics", "sport", "tech"]


@dataclass(frozen=True)
class Entry:
    """A task to measure: `inputs` makes so many different ones, `plain` loads what the fleet is compared with.

    With `own_loop` that is a bare loop over a network of our own, else transformers' (or diffusers') pipeline or
    network. `weights` says what model it is and whose weights they are. `declared` is what the task's table in
    fleet.toml has besides its kind, if the task is not a built-in one. `quality`, if there is something to say,
    measures the task on held-out data: what was measured, the result, and the baseline. `documents` are those that a
    retrieval task looks into.
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
    own_loop: bool = False
    declared: Mapping[str, Any] = field(default_factory=dict)
    documents: Callable[[], list[Document]] | None = None


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

    source = settings.load(environment={}).data["photographs"]["source"]
    folder = model_source.pull(model_source.parse(source, where="photographs"), model_source.cache_folder()).folder
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


def encoder_by_hand() -> Callable[[Sequence[str]], Any]:
    """Return what turns texts into vectors of length 1, as one writes it around a sentence encoder."""
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

    return vectors


def likeness_by_hand(folder: Path) -> Plain:
    """Each text and the labels' sentences, the labels once."""
    del folder
    vectors = encoder_by_hand()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        labels = vectors([f"This example is {label}." for label in TOPICS])
        parts = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
        return [scores for part in parts for scores in (20 * vectors(part) @ labels.T).softmax(-1).tolist()]

    return run


def articles() -> list[Document]:
    """Return BBC articles without their headlines, each called by its own."""
    found = Random(0).sample(data.read("topic", model_source.cache_folder()), 80)
    parts = [example.text.partition("\n") for example in found]
    return [Document(headline, body) for headline, _, body in parts if body.strip()]


def retrieval_by_hand(folder: Path) -> Plain:
    """Each text and a matrix of passages, which are encoded before the clock runs."""
    import torch

    del folder
    vectors = encoder_by_hand()
    texts = [passage.text for document in articles() for passage in passages(document)]
    known = torch.cat([vectors(texts[start : start + 16]) for start in range(0, len(texts), 16)])

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        parts = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
        return [
            [texts[place] for place in own]
            for part in parts
            for own in (vectors(part) @ known.T).topk(5).indices.tolist()
        ]

    return run


def headlines_found(client: Client) -> tuple[str, float, float]:
    """Judge retrieval: is a headline's own article the first that is found? Word search is the baseline."""
    documents = articles()
    job = client.submit_many("passages", [document.name for document in documents], params={"top_k": 1})
    job.wait(timeout_s=600)
    found = {row.seq: row.output[0]["document"] for row in job.results()}
    cut = [(document.name, passage.text) for document in documents for passage in passages(document)]
    words = WordSearch([text for _, text in cut])
    by_words = [[cut[place][0] for place in words.best(document.name, 1)] == [document.name] for document in documents]
    right = sum(found[place] == document.name for place, document in enumerate(documents))
    return "BBC headline finds its article first, beside BM25", right / len(documents), sum(by_words) / len(documents)


def topics_by_likeness(client: Client) -> tuple[str, float, float]:
    """Judge zero-shot classification on BBC articles, of which nothing was trained: labels and template as they come
    to mind.
    """
    examples = Random(0).sample(list(data.read("topic", model_source.cache_folder())), 500)
    params = {"truncation": True, "candidate_labels": TOPICS, "hypothesis_template": "A news article about {}."}
    job = client.submit_many("likeness", [example.text[:2000] for example in examples], params=params)
    job.wait(timeout_s=600)
    best = {row.seq: row.output[0]["label"] for row in job.results()}
    right = sum(best[place] == example.label for place, example in enumerate(examples))
    most = max(sum(example.label == topic for example in examples) for topic in TOPICS)
    return "accuracy, 500 BBC articles in 5 topics:", right / len(examples), most / len(examples)


def writing_by_hand(most_tokens: int) -> Callable[[Path], Plain]:
    """Texts one by one, or in padded batches: transformers has no pipeline for them any more."""

    def load(folder: Path) -> Plain:
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
                        max_new_tokens=most_tokens,
                        do_sample=False,
                    )
                found += tokenizer.batch_decode(made, skip_special_tokens=True)
            return found

        return run

    return load


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
    Entry("passages", "passage-retrieval", "text", MINILM, texts, retrieval_by_hand, params=CUT, quality=headlines_found,
          documents=articles),
    Entry("names", "token-classification", "reader", RANDOM_HEAD, texts,
          pipeline("token-classification", head="names", aggregation_strategy="simple")),
    Entry("entities", "token-classification", "text", "MiniLM (22.7 M), own head", texts, words.entities_by_hand,
          quality=words.entities_found),
    Entry("language", "language-identification", "language", "n-grams (0.4 M), own", words.in_many_languages, words.languages_by_hand,
          4000, quality=words.languages_told, own_loop=True),
    Entry("answer", "question-answering", "reader", RANDOM_HEAD, questions, answers_by_hand),
    Entry("fill", "fill-mask", "reader", RANDOM_HEAD, masked, pipeline("fill-mask", head="fill")),
    Entry("shows", "image-classification", "classifier", "ViT-tiny (5.5 M), random", pictures,
          pipeline("image-classification", images=True)),
    Entry("objects", "object-detection", "finder", "YOLOS-tiny (6.5 M), random", pictures,
          pipeline("object-detection", images=True), 60),
    Entry("parts", "image-segmentation", "segmenter", "SegFormer-B0 (3.7 M), random", pictures,
          pipeline("image-segmentation", images=True), 24),
    Entry("found", "object-detection", "detector", "NanoDet (3.8 M), built-in", pictures, drawings.detected_by_hand, 180,
          own_loop=True),
    Entry("picture", "text-to-image", "pictures", "latent diffusion (1.3 M), own", drawings.prompts, drawings.drawn_by_hand, 12,
          drawings.STEPS, quality=drawings.digits_read),
    Entry("restyled", "style-transfer", "style", "feed-forward (0.35 M), own", drawings.small_photographs, drawings.styled_by_hand, 96,
          own_loop=True),
    Entry("action", "video-classification", "watcher", "VideoMAE-tiny (5.6 M), random", moving.clips, moving.video_pipeline, 24,
          {"frame_sampling_rate": moving.RATE}),
    Entry("camera-motion", "video-classification", "video", "MobileNetV2 (3.5 M), own head", moving.clips, moving.camera_by_hand, 32,
          quality=moving.camera_motions_told, own_loop=True),
    Entry("motion", "time-series-classification", "motion", "recurrent (0.03 M), own", moving.recordings, moving.motion_by_hand, 400,
          quality=moving.motions_told, own_loop=True),
    Entry("holds", "visual-question-answering", "fused", "MiniLM (22.7 M) and MobileNetV2 (3.5 M), own head", fused.sayings, fused.by_hand,
          120, quality=fused.statements_judged),
    Entry("shorter", "summarization", "writer", "T5 (22 M), random", texts, writing_by_hand(16), 60,
          CUT | {"max_new_tokens": 16}),
    Entry("translation", "translation", "translation", "T5 (4.5 M), own", words.described, writing_by_hand(64), 80,
          {"max_new_tokens": 64}, quality=words.translated),
    Entry("transcript", "automatic-speech-recognition", "speech", "Whisper tiny.en (38 M), built-in", recordings.clips,
          recordings.pipeline("automatic-speech-recognition", generate_kwargs={"num_beams": 1}), 12,
          quality=recordings.words_wrong),
    Entry("sounds", "audio-classification", "listener", "AST-tiny (5.6 M), random", recordings.clips,
          recordings.pipeline("audio-classification"), 24),
)  # fmt: skip
