"""Fill-mask: the most likely tokens at each mask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.text import FillMaskParams
from workers.models.huggingface.text_head import TextHead, rounded
from workers.models.huggingface.token_sequences import Reading
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch

#: The most masks in a text. The output has a probability for each mask and each token of the vocabulary.
MOST_MASKS = 16


class FillMask(TextHead):
    """A text with one mask gets a list of tokens; a text with several masks gets a list for each mask."""

    auto = "AutoModelForMaskedLM"

    @cached_property
    def _mask(self) -> int:
        mask = self.tokenizing.token_id("mask_token")
        if mask is None:
            raise ConfigurationError(f"{self.checkpoint.where}: the tokenizer's mask token is not in its vocabulary")
        return mask

    def check(self) -> None:
        super().check()
        if self.tokenizing.token("mask_token") is None:
            raise ConfigurationError(f"{self.checkpoint.where}: the tokenizer has no mask token; fill-mask needs it")

    def read(self, content: Any, params: FillMaskParams) -> Reading:
        sequence = self.one(content, params)
        if not (sequence.ids == self._mask).any():
            token = self.tokenizing.tokenizer.id_to_token(self._mask)
            raise InvalidInput("input", f"has no {token}", "put it in place of the missing word")
        if (masks := int((sequence.ids == self._mask).sum())) > MOST_MASKS:
            raise InvalidInput("input", f"has {masks} masks, over {MOST_MASKS}", "send texts with fewer masks")
        self._targets(params)
        return Reading((sequence,), sequence.ids)

    def masked(self, text: str) -> str:
        """Return a text with a mask after its first word."""
        first, _, rest = text.partition(" ")
        return f"{first} {self.tokenizing.token('mask_token')} {rest}"

    def adapt(self, network: Any) -> None:
        """Apply the projection to the vocabulary, by far the largest matrix, only at the masks' positions."""
        projection = network.get_output_embeddings()
        if projection is None:
            problem = f"{type(network).__name__} has no projection to the vocabulary"
            raise ConfigurationError(f"{self.checkpoint.where}: {problem}; fill-mask needs it")
        _narrow(network, projection, self._mask)

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the probabilities of all tokens at the masks, `(sequences, most masks, tokens)`."""
        scores: torch.Tensor = output.logits.float().softmax(-1)
        return scores

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
        best = among[_highest(scores[among], params.top_k)]
        found = []
        for token in best:
            filled = ids.copy()
            filled[place] = token
            found.append(
                {
                    "score": rounded(scores[token]),
                    "token": int(token),
                    "token_str": self.tokenizing.decode([int(token)], skip_special_tokens=False),
                    # if there are several masks, the other masks stay visible
                    "sequence": self.tokenizing.decode(filled.tolist(), skip_special_tokens=masks == 1),
                }
            )
        return found

    def _targets(self, params: FillMaskParams) -> list[int]:
        found = {}
        for target in params.targets:
            number = self.tokenizing.tokenizer.token_to_id(target)
            if number is None:
                problem = f"{target!r} is not a token of the model"
                raise InvalidInput("params.targets", problem, "choose tokens from an answer without `targets`")
            found[number] = target
        return sorted(found)


def _highest(scores: Array, count: int) -> Array:
    """Return the indices of the highest scores, best first, without sorting the whole vocabulary."""
    count = min(count, len(scores))
    among = np.argpartition(-scores, count - 1)[:count]
    return np.asarray(among[np.lexsort((among, -scores[among]))])


def _narrow(network: Any, projection: Any, mask: int) -> None:
    """Hook a masked language model so that its last projection runs only at the masks.

    The output then has the shape `(sequences, most masks, tokens)`: each sequence's masks in their order, then padding
    with arbitrary values.
    """
    places: list[torch.Tensor] = []  # of the present pass, until they are taken

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        masked = given["input_ids"] == mask
        most = max(int(masked.sum(1).max()), 1)
        # a stable sort moves the masks to the front and keeps their order
        places[:] = [masked.int().argsort(dim=1, descending=True, stable=True)[:, :most]]

    def taken(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, places.pop().unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    def choose(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = given
        return (taken(hidden), *rest)

    def choose_late(_: Any, __: Any, output: Any) -> None:
        if places:  # the network has multiplied by the projection's weights itself (MobileBERT)
            output.logits = taken(output.logits)

    network.register_forward_pre_hook(note, with_kwargs=True)
    projection.register_forward_pre_hook(choose)
    network.register_forward_hook(choose_late)
