"""The kinds whose input is text: parameters and outputs, named as in the Hugging Face pipelines."""

from __future__ import annotations

from typing import Literal

import msgspec

from producers.wire.kinds.explanation import ExplainedLabels, check_steps
from producers.wire.kinds.kind import Kind, Labels, Vector, at_least

#: The most labels for one text: each takes a pass of its own over the text.
MOST_CANDIDATE_LABELS = 100

#: The most answers of a text, and of a mask: each is made into text by itself.
MOST_ANSWERS = 1000

#: The most beams: each takes as much memory as a text of its own.
MOST_BEAMS = 16

_LONGEST_TEMPLATE_CHARS = 1_000
_LONGEST_LABEL_CHARS = 200


class TextClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best labels are returned, best first (null: all labels).

    `truncation` cuts a text over the model's tokens instead of refusing it. `explain` adds each word's contribution to
    the best label, or to `explain_label`, computed in `explain_steps` steps.
    """

    top_k: int | None = 1
    truncation: bool = False
    explain: bool = False
    explain_steps: int = 32
    explain_label: str | None = None

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)
        check_steps(self.explain_steps)


class FeatureExtractionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`normalize` scales the vector to length 1. `truncation` as for text classification."""

    normalize: bool = True
    truncation: bool = False


class ZeroShotClassificationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Find the `candidate_labels` that describe a text.

    `hypothesis_template` has ``{}`` in the place of the label. With `multi_label` each label is scored by itself,
    otherwise the scores add up to 1. `truncation` cuts the text.
    """

    candidate_labels: tuple[str, ...]
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False
    truncation: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.candidate_labels) <= MOST_CANDIDATE_LABELS:
            raise ValueError(f"`candidate_labels` must be 1 to {MOST_CANDIDATE_LABELS} labels")
        if any(not label.strip() or len(label) > _LONGEST_LABEL_CHARS for label in self.candidate_labels):
            raise ValueError(f"`candidate_labels` must be labels of 1 to {_LONGEST_LABEL_CHARS} characters")
        if len(set(self.candidate_labels)) < len(self.candidate_labels):
            raise ValueError("`candidate_labels` must not name a label twice")
        if self.hypothesis_template.count("{}") != 1 or len(self.hypothesis_template) > _LONGEST_TEMPLATE_CHARS:
            raise ValueError("`hypothesis_template` must contain {} once, in the place of the label")


class LanguageIdentificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best languages, best first, by ISO 639-1 code (null: all). A text without a letter is ``und``."""

    top_k: int | None = 1

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


class TokenClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Join tokens to entities.

    `aggregation_strategy` is as in transformers ("none": token by token), but "simple" by default. Labels in
    `ignore_labels` are left out. A text over the model's tokens is read in windows that overlap by `stride` tokens
    (null: an eighth of a window).
    """

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    ignore_labels: tuple[str, ...] = ("O",)
    stride: int | None = None

    def __post_init__(self) -> None:
        at_least("stride", self.stride, 0)


class QuestionAnsweringParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best answers from the context are returned, best first, each of at most `max_answer_len` tokens.

    A long context is read in windows that overlap by `doc_stride` tokens. `handle_impossible_answer` lets "no answer"
    (empty) compete too.
    """

    top_k: int = 1
    doc_stride: int = 128
    max_answer_len: int = 15
    handle_impossible_answer: bool = False

    def __post_init__(self) -> None:
        _check_answers(self.top_k)
        at_least("doc_stride", self.doc_stride)
        at_least("max_answer_len", self.max_answer_len)


class FillMaskParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best tokens for each mask, best first, among `targets` if given. `truncation` cuts the text."""

    top_k: int = 5
    targets: tuple[str, ...] = ()
    truncation: bool = False

    def __post_init__(self) -> None:
        _check_answers(self.top_k)


def _check_answers(top_k: int) -> None:
    at_least("top_k", top_k)
    if top_k > MOST_ANSWERS:
        raise ValueError(f"`top_k` must be {MOST_ANSWERS} or less")


class SentenceSimilarityParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`truncation` cuts sentences over the model's tokens instead of refusing the item."""

    truncation: bool = False


class GenerationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of text made from text. A null is taken from the checkpoint's ``generation_config.json``.

    Nothing is sampled: the same text gives the same answer. `truncation` cuts a text over the model's tokens.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    num_beams: int | None = None
    no_repeat_ngram_size: int | None = None
    length_penalty: float | None = None
    truncation: bool = False

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens)
        at_least("min_new_tokens", self.min_new_tokens, 0)
        at_least("num_beams", self.num_beams)
        if self.num_beams is not None and self.num_beams > MOST_BEAMS:
            raise ValueError(f"`num_beams` must be {MOST_BEAMS} or less")
        at_least("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)


class TranslationParams(GenerationParams, frozen=True, forbid_unknown_fields=True):
    """Translate from `src_lang` into `tgt_lang`, by the language tokens of a multilingual model (``eng_Latn``).

    Null is for a model of a single language pair, or with defaults of its own.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None


class Entity(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of the text, characters `start` to `end`, and its label.

    The label is `entity_group`; with the strategy "none" it is the `entity` of the token at `index`.
    """

    score: float
    word: str
    start: int
    end: int
    entity_group: str | None = None
    entity: str | None = None
    index: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """A part of the context, characters `start` to `end`, with its probability."""

    score: float
    start: int
    end: int
    answer: str


class Filling(msgspec.Struct, frozen=True):
    """A token in a mask's place, and the text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


class MadeText(msgspec.Struct, frozen=True):
    """The generated text."""

    text: str


TEXT_KINDS = (
    Kind(
        "text-classification",
        "text",
        TextClassificationParams,
        ExplainedLabels,
        "labels for a text, best first",
        in_columns=1024,
    ),
    # a chunk has at most 1 MiB of vectors
    Kind("feature-extraction", "text", FeatureExtractionParams, Vector, "one vector for a text", in_columns=256),
    Kind(
        "zero-shot-classification",
        "text",
        ZeroShotClassificationParams,
        Labels,
        "the ones of your labels that describe a text",
    ),
    Kind("language-identification", "text", LanguageIdentificationParams, Labels, "the language of a text"),
    Kind("token-classification", "text", TokenClassificationParams, list[Entity], "names and other entities in a text"),
    Kind("fill-mask", "text", FillMaskParams, list[Filling], "tokens for the masks in a text"),
    Kind(
        "question-answering",
        "question",
        QuestionAnsweringParams,
        list[Answer],
        "the part of a text that answers a question",
    ),
    Kind(
        "sentence-similarity",
        "sentences",
        SentenceSimilarityParams,
        list[float],
        "the similarity of sentences to a sentence",
    ),
    Kind("summarization", "text", GenerationParams, MadeText, "a shorter text"),
    Kind("translation", "text", TranslationParams, MadeText, "the text in another language"),
    Kind("text2text-generation", "text", GenerationParams, MadeText, "a text made from a text"),
)
