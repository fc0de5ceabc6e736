"""Texts as vectors: feature extraction, sentence similarity, and zero-shot classification by similarity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.text import FeatureExtractionParams, SentenceSimilarityParams, ZeroShotClassificationParams
from producers.wire.messages import SentencesInput
from workers.models.huggingface.checkpoint_networks import BACKBONE
from workers.models.huggingface.text import likeness
from workers.models.huggingface.text_head import TextHead, best_labels, rounded
from workers.models.huggingface.token_sequences import Reading
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch

#: The option `pooling`: the function from the tokens' vectors to the text's vector.
POOLINGS = ("mean", "cls", "max")


class Vectors(TextHead):
    """The base of heads on the backbone's output: a vector per sequence."""

    auto = BACKBONE

    @cached_property
    def _pooling(self) -> str:
        if self.options.pooling:
            return self.options.pooling
        pooling = self.checkpoint.read_if_there("1_Pooling/config.json")
        modes = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens"}
        return next((name for name, key in modes.items() if pooling.get(key)), "mean")

    def check(self) -> None:
        super().check()
        if self._pooling not in POOLINGS:
            where = f"{self.checkpoint.where}.options.pooling"
            raise ConfigurationError(f"{where}: must be one of {', '.join(POOLINGS)}, not {self._pooling!r}")

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden: torch.Tensor = output.last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        if self._pooling == "cls":
            return hidden[:, 0]
        if self._pooling == "max":
            return hidden.masked_fill(mask == 0, float("-inf")).amax(1)
        weights = mask.to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


class FeatureExtraction(Vectors):
    """The text's vector: the mean, first token or maximum over its tokens, by the option `pooling` or ``1_Pooling``."""

    def read(self, content: Any, params: FeatureExtractionParams) -> Reading:
        return Reading((self.one(content, params),))

    def finish(self, output: Array, params: FeatureExtractionParams, aside: Any) -> Any:
        return _unit(output[0]) if params.normalize else output[0].astype(np.float32)


class SentenceSimilarity(Vectors):
    """The cosines between the source sentence's vector and each other sentence's vector."""

    def read(self, content: Any, params: SentenceSimilarityParams) -> Reading:
        if not isinstance(content, SentencesInput):
            raise InvalidInput("input", "must be an object with source_sentence and sentences")
        texts = (content.source_sentence, *content.sentences)
        return Reading(tuple(self.one(text, params) for text in texts), aside=len(content.sentences))

    def finish(self, output: Array, params: SentenceSimilarityParams, aside: int) -> Any:
        vectors = _unit(output[: aside + 1])
        return [rounded(cosine) for cosine in vectors[1:] @ vectors[0]]


class Similarity(Vectors):
    """Zero-shot classification by similarity (`workers.models.huggingface.text.likeness`)."""

    def read(self, content: Any, params: ZeroShotClassificationParams) -> Reading:
        return Reading(tuple(self.one(text, params) for text in (content, *likeness.hypotheses(params))))

    def finish(self, output: Array, params: ZeroShotClassificationParams, aside: Any) -> Any:
        vectors = _unit(output[: len(params.candidate_labels) + 1])
        own = likeness.scores(vectors[1:] @ vectors[0], params)
        return best_labels(params.candidate_labels, own, None)


def _unit(vectors: Array) -> Array:
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))
