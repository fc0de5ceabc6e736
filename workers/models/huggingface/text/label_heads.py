"""Text classification, and zero-shot classification by a natural language inference model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import ConfigurationError
from producers.wire.kinds.text import TextClassificationParams, ZeroShotClassificationParams
from workers.models.huggingface.text import likeness
from workers.models.huggingface.text_head import TextHead, best_labels, sigmoid, softmax
from workers.models.huggingface.token_sequences import Reading
from workers.models.interface.model import SCORE_DIGITS, Array
from workers.models.interface.text_block import BlockAnswers, label_columns

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: The values of the option `function_to_apply`: functions from a classifier's raw output to scores.
FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {"sigmoid": sigmoid, "softmax": softmax, "none": np.asarray}


class Classification(TextHead):
    """Labels with scores: softmax if exactly one label applies, sigmoid if several may, none for the raw output."""

    auto = "AutoModelForSequenceClassification"
    in_blocks = True

    def check(self) -> None:
        super().check()
        if self.function not in FUNCTIONS:
            where = f"{self.checkpoint.where}.options.function_to_apply.{self.task.name}"
            raise ConfigurationError(f"{where}: must be one of {', '.join(FUNCTIONS)}, not {self.function!r}")
        crossing = self._crossing
        if crossing and crossing != self.function and self.task.name not in self.options.function_to_apply:
            told = f'options.function_to_apply.{self.task.name} = "{crossing}"'
            logger.warning(
                "%s: scores are by %s, as in transformers' pipeline; the folder's CrossEncoder gives them by %s (%s)",
                self.checkpoint.where, self.function, crossing, told,
            )  # fmt: skip

    @property
    def _crossing(self) -> str:
        """The function that sentence-transformers' CrossEncoder applies, or an empty string."""
        config = self.checkpoint.config
        found = (config.get("sentence_transformers") or {}).get("activation_fn")
        found = found or config.get("sbert_ce_default_activation_function")  # until version 4
        return {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}.get(str(found).rpartition(".")[2], "")

    @property
    def function(self) -> str:
        return self.options.function_to_apply.get(self.task.name, self.checkpoint.function_to_apply)

    def read(self, content: Any, params: TextClassificationParams) -> Reading:
        return Reading((self.one(content, params),))

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits

    def finish(self, output: Array, params: TextClassificationParams, aside: Any) -> Any:
        return best_labels(self.checkpoint.labels, FUNCTIONS[self.function](output[0]), params.top_k)

    def finish_block(self, outputs: Array, params: TextClassificationParams) -> BlockAnswers:
        return label_columns(self.checkpoint.labels, FUNCTIONS[self.function](outputs), params.top_k, SCORE_DIGITS)


class Inference(TextHead):
    """Zero-shot classification by entailment: does the text entail "This example is LABEL."? (Yin et al., 2019).

    Each label makes a sequence.
    """

    auto = "AutoModelForSequenceClassification"

    def read(self, content: Any, params: ZeroShotClassificationParams) -> Reading:
        self.encode(content)  # refuse an empty text, which the hypothesis would hide
        return Reading(
            tuple(self.one(content, params, hypothesis, "only_first") for hypothesis in likeness.hypotheses(params))
        )

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits

    def finish(self, output: Array, params: ZeroShotClassificationParams, aside: Any) -> Any:
        labels = params.candidate_labels
        entailment = entailment_label(self.checkpoint.labels)
        assert entailment is not None, "the head was chosen for this label"
        logits = output[: len(labels)]
        if params.multi_label or len(labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = softmax(logits[:, [contradiction, entailment]])[:, 1]
        else:
            scores = softmax(logits[:, entailment])
        return best_labels(labels, scores, None)


def entailment_label(labels: tuple[str, ...]) -> int | None:
    """Return the index of the label "entailment", or None if the classifier is not an inference model."""
    return next((n for n, label in enumerate(labels) if label.lower().startswith("entail")), None)
