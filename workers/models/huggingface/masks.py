"""Fill-mask: the likeliest tokens in each mask's place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.errors import ConfigurationError, InvalidInput
from producers.kinds.text import FillMaskParams
from workers.models.huggingface.head import TextHead, rounded
from workers.models.huggingface.sequences import Reading
from workers.models.model import Array

if TYPE_CHECKING:
    import torch


class FillMask(TextHead):
    """A text with one mask has one list of tokens, one with several a list for each."""

    auto = "AutoModelForMaskedLM"

    @cached_property
    def _mask(self) -> int:
        mask = self.tokenizing.token_id("mask_token")
        if mask is None:
            raise ConfigurationError(f"{self.checkpoint.where}: its tokenizer has no mask token, which fill-mask needs")
        return mask

    def check(self) -> None:
        super().check()
        _ = self._mask

    def read(self, content: Any, params: FillMaskParams) -> Reading:
        sequence = self.one(content, params)
        if not (sequence.ids == self._mask).any():
            token = self.tokenizing.tokenizer.id_to_token(self._mask)
            raise InvalidInput("input", f"has no {token}", "put one where a word is to be found")
        self._targets(params)
        return Reading((sequence,), sequence.ids)

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the probabilities of all tokens in the masks' places `(sequences, most masks, tokens)`."""
        import torch

        places = [(ids == self._mask).nonzero().squeeze(-1) for ids in inputs["input_ids"]]
        most = max(len(own) for own in places)
        shape = (len(places), most, output.logits.shape[-1])
        found = torch.zeros(shape, dtype=torch.float32, device=output.logits.device)
        for row, own in enumerate(places):
            found[row, : len(own)] = output.logits[row, own].float().softmax(-1)
        return found

    def finish(self, output: Array, params: FillMaskParams, aside: Array) -> Any:
        places = np.flatnonzero(aside == self._mask).tolist()
        lists = [
            self._fillings(scores, place, params, aside, len(places))
            for scores, place in zip(output[0], places, strict=False)
        ]
        return lists[0] if len(lists) == 1 else lists

    def _fillings(
        self, scores: Array, place: int, params: FillMaskParams, ids: Array, masks: int
    ) -> list[dict[str, Any]]:
        among = np.array(self._targets(params), dtype=np.int64) if params.targets else np.arange(len(scores))
        best = among[np.argsort(-scores[among], kind="stable")[: params.top_k]]
        tokenizer = self.tokenizing.tokenizer
        found = []
        for token in best:
            filled = ids.copy()
            filled[place] = token
            found.append(
                {
                    "score": rounded(scores[token]),
                    "token": int(token),
                    "token_str": tokenizer.decode([int(token)], skip_special_tokens=False),
                    # several masks: the others stay in sight
                    "sequence": tokenizer.decode(filled.tolist(), skip_special_tokens=masks == 1),
                }
            )
        return found

    def _targets(self, params: FillMaskParams) -> list[int]:
        found = {}
        for target in params.targets:
            number = self.tokenizing.tokenizer.token_to_id(target)
            if number is None:
                problem = f"{target!r} is not one of the model's tokens"
                raise InvalidInput("params.targets", problem, "choose tokens as the answers without targets have them")
            found[number] = target
        return sorted(found)
