"""The network of tasks whose answer is written: a whole transformers model, which gives each label token's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from workers.models.huggingface.network_calls import call
from workers.training.kinds.labelled_kind import IGNORED, LabelledKind
from workers.training.kinds.shared_network import INPUT, Backbone, SharedNetwork, TaskNetwork

LABELS = "labels"


class WritingBackbone(Backbone):
    """A model that writes: an encoder with a decoder, or a decoder alone.

    It returns the loss of each label token and whether it is the likeliest, `(rows, tokens, 2)`, in place of the scores
    of all tokens, which would be the largest tensor of the pass.
    """

    writes = True

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        labels, scores = inputs[LABELS], self.hidden(inputs)
        if not self.backbone.config.is_encoder_decoder:  # the scores at a place are those of the next token
            scores = functional.pad(scores[:, :-1], (0, 0, 1, 0))
            labels = functional.pad(labels[:, 1:], (1, 0), value=IGNORED)
        scores = scores.float()
        losses = functional.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
        ).view_as(labels)
        return torch.stack([losses, (scores.argmax(-1) == labels).float()], dim=-1)

    def hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        given = {name: tensor for name, tensor in inputs.items() if name != LABELS}
        if self.backbone.config.is_encoder_decoder:
            given["decoder_input_ids"] = self.backbone.prepare_decoder_input_ids_from_labels(labels=inputs[LABELS])
        found: torch.Tensor = call(self.backbone, given).logits
        return found


class WritingTask(TaskNetwork):
    """A task without a head: the whole model is shared."""

    def __init__(self, kind: LabelledKind) -> None:
        super().__init__(kind, None, None)

    def values(self, features: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = features
        return found


class WritingNetwork(SharedNetwork):
    """A model that writes, with its tasks."""

    def generated(
        self, batch: Mapping[str, torch.Tensor], settings: Mapping[str, Any], *, together: bool = False
    ) -> list[list[int]]:
        """Return the tokens that the model writes for each input, by transformers' own `generate`.

        `together`: the processes gather weights for every token, until all of them have ended.
        """
        made = self.encoder.backbone.generate(
            input_ids=batch[f"{INPUT}input_ids"],
            attention_mask=batch[f"{INPUT}attention_mask"],
            do_sample=False,
            num_return_sequences=1,
            return_dict_in_generate=False,
            synced_gpus=together,
            **settings,
        )
        tokens: list[list[int]] = made.cpu().tolist()
        return tokens
