"""Texts as vectors: feature extraction, sentence similarity, and zero-shot classification by similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.text import FeatureExtractionParams, SentenceSimilarityParams, ZeroShotClassificationParams
from producers.wire.messages import SentencesInput
from workers.models.huggingface.checkpoint_networks import BACKBONE
from workers.models.huggingface.text import likeness, sentence_modules
from workers.models.huggingface.text.sentence_modules import POOLINGS, SentenceModules, pooled
from workers.models.huggingface.text_head import TextHead, best_labels, rounded
from workers.models.huggingface.token_sequences import Reading, TokenSequence
from workers.models.huggingface.tokenizing import Cut
from workers.models.interface.model import Array
from workers.models.interface.text_block import BlockAnswers

if TYPE_CHECKING:
    import torch


class Vectors(TextHead):
    """The base of heads on the backbone's output: a vector per sequence, made as the folder's modules say."""

    auto = BACKBONE

    @cached_property
    def modules(self) -> SentenceModules:
        return sentence_modules.read(self.checkpoint)

    @cached_property
    def _poolings(self) -> tuple[str, ...]:
        return (self.options.pooling,) if self.options.pooling else self.modules.poolings

    @cached_property
    def _layers(self) -> list[Any]:
        return [layer.load(self.checkpoint.where) for layer in self.modules.layers]

    def check(self) -> None:
        super().check()
        where = f"{self.checkpoint.where}.options"
        if unknown := [pooling for pooling in self._poolings if pooling not in POOLINGS]:
            raise ConfigurationError(f"{where}.pooling: must be one of {', '.join(POOLINGS)}, not {unknown[0]!r}")
        name = self._prompt_name
        if name is not None and name not in self.modules.prompts:
            names = ", ".join(sorted(self.modules.prompts)) or "none"
            raise ConfigurationError(f"{where}.prompt: the folder has no prompt {name!r}; it has {names}")
        if self._prompt and not self.modules.pools_prompt:
            problem = "the folder's pooling leaves the prompt out, which is not served"
            raise ConfigurationError(f"{self.checkpoint.where}: {problem}; use sentence-transformers itself")

    def one(self, text: Any, params: Any, pair: str | None = None, cut: Cut = "longest_first") -> TokenSequence:
        return super().one(self.whole(text) if isinstance(text, str) else text, params, pair, cut)

    def whole(self, text: str) -> str:
        return self._prompt + text if text.strip() else text  # an empty text is refused, with a prompt too

    def adapt(self, network: Any) -> None:
        """Load the layers, so that a missing file is found before the first pass."""
        self._layers  # noqa: B018

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        vectors = pooled(output.last_hidden_state, inputs["attention_mask"], self._poolings)
        if self._layers:
            vectors = vectors.float()
        for layer in self._layers:
            vectors = (layer.to(vectors.device) if hasattr(layer, "to") else layer)(vectors)
        return vectors[:, : self.modules.width]

    @property
    def _prompt_name(self) -> str | None:
        return self.options.prompt or self.modules.default_prompt

    @cached_property
    def _prompt(self) -> str:
        name = self._prompt_name
        return "" if name is None else self.modules.prompts.get(name, "")


class FeatureExtraction(Vectors):
    """The text's vector."""

    in_blocks = True

    def read(self, content: Any, params: FeatureExtractionParams) -> Reading:
        return Reading((self.one(content, params),))

    def finish(self, output: Array, params: FeatureExtractionParams, aside: Any) -> Any:
        return _unit(output[0]) if params.normalize else output[0].astype(np.float32)

    def finish_block(self, outputs: Array, params: FeatureExtractionParams) -> BlockAnswers:
        return _unit(outputs) if params.normalize else outputs.astype(np.float32)


class SentenceSimilarity(Vectors):
    """How alike the source sentence's vector and each other sentence's vector are: by the folder's function, which is
    usually the cosine.
    """

    def read(self, content: Any, params: SentenceSimilarityParams) -> Reading:
        if not isinstance(content, SentencesInput):
            raise InvalidInput("input", "must be an object with source_sentence and sentences")
        texts = (content.source_sentence, *content.sentences)
        return Reading(tuple(self.one(text, params) for text in texts), aside=len(content.sentences))

    def finish(self, output: Array, params: SentenceSimilarityParams, aside: int) -> Any:
        vectors = output[: aside + 1].astype(np.float32)
        return [rounded(value) for value in _SIMILARITIES[self.modules.similarity](vectors[1:], vectors[0])]


class Similarity(Vectors):
    """Zero-shot classification by similarity (`workers.models.huggingface.text.likeness`)."""

    def read(self, content: Any, params: ZeroShotClassificationParams) -> Reading:
        return Reading(tuple(self.one(text, params) for text in (content, *likeness.hypotheses(params))))

    def finish(self, output: Array, params: ZeroShotClassificationParams, aside: Any) -> Any:
        vectors = _unit(output[: len(params.candidate_labels) + 1])
        own = likeness.scores(vectors[1:] @ vectors[0], params)
        return best_labels(params.candidate_labels, own, None)


#: The functions of sentence-transformers: distances are negative, so that more is more alike.
_SIMILARITIES: Mapping[str, Callable[[Array, Array], Array]] = {
    "cosine": lambda vectors, source: np.asarray(_unit(vectors) @ _unit(source)),
    "dot": lambda vectors, source: np.asarray(vectors @ source),
    "euclidean": lambda vectors, source: -np.linalg.norm(vectors - source, axis=-1),
    "manhattan": lambda vectors, source: -np.abs(vectors - source).sum(-1),
}


def _unit(vectors: Array) -> Array:
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))
