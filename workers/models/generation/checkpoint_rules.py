"""A checkpoint's own rules for the next token: transformers' processors, in its order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from producers.wire.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

#: The settings of ``generation_config.json`` that are obeyed here.
OBEYED = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "suppress_tokens",
)

#: Changes the scores of the next token, `(1, vocabulary)`, after the tokens of prompt and answer, `(1, tokens)`.
Rule: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"


class CheckpointRules:
    """The rules of a checkpoint. Raises ConfigurationError for settings that transformers refuses."""

    def __init__(self, settings: Mapping[str, Any], eos: Collection[int], where: str) -> None:
        self._settings = {name: settings[name] for name in OBEYED if settings.get(name)}
        if settings.get("forced_eos_token_id") is not None:  # may be 0
            self._settings["forced_eos_token_id"] = settings["forced_eos_token_id"]
        self._eos = sorted(eos)
        try:
            self.of_request(1, 1)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{where}: generation_config.json: {error}; correct it") from error

    def of_request(self, prompt_tokens: int, max_new_tokens: int) -> Sequence[Rule]:
        """Return the rules for an answer to a prompt."""
        from transformers.generation import logits_process

        told, eos = self._settings, self._eos
        found: list[Rule] = []
        if "no_repeat_ngram_size" in told:
            found.append(logits_process.NoRepeatNGramLogitsProcessor(told["no_repeat_ngram_size"]))
        if "bad_words_ids" in told:
            found.append(logits_process.NoBadWordsLogitsProcessor(told["bad_words_ids"], eos))
        if "min_new_tokens" in told:  # it takes the place of `min_length`
            least = told["min_new_tokens"]
            found.append(logits_process.MinNewTokensLengthLogitsProcessor(prompt_tokens, least, eos))
        elif "min_length" in told:
            found.append(logits_process.MinLengthLogitsProcessor(told["min_length"], eos))
        if "forced_eos_token_id" in told:
            most = prompt_tokens + max_new_tokens
            found.append(logits_process.ForcedEOSTokenLogitsProcessor(most, told["forced_eos_token_id"]))
        if "suppress_tokens" in told:
            found.append(logits_process.SuppressTokensLogitsProcessor(told["suppress_tokens"]))
        if "begin_suppress_tokens" in told:
            never = told["begin_suppress_tokens"]
            found.append(logits_process.SuppressTokensAtBeginLogitsProcessor(never, prompt_tokens))
        return found
