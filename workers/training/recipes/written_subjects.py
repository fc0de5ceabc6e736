"""Rows for a model that writes: texts for an encoder with a decoder, and dialogues for a decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.text_head import too_long
from workers.models.interface.model import Array, Arrays
from workers.training.kinds.labelled_kind import IGNORED, LabelledKind, padded
from workers.training.kinds.shared_network import TO
from workers.training.kinds.written_kinds import (
    DialogueMessage,
    TokenScores,
    WrittenKind,
    as_turns,
    fitted_lengths,
)
from workers.training.kinds.written_network import LABELS, WritingBackbone, WritingNetwork, WritingTask
from workers.training.loop.recipe import Recipe
from workers.training.loop.training_subject import Part
from workers.training.recipes import served_folder
from workers.training.recipes.folder_subject import Judged, ReadRow, TrainedFolder
from workers.training.recipes.labelled_rows import LabelledRow
from workers.training.recipes.recipe_file import TrainTable


class WrittenTexts(TrainedFolder):
    """The base of both. Each labelled task of a row is an example of its own: input, and the label's tokens."""

    writes = True
    kinds: Sequence[WrittenKind]

    def read(self, row: LabelledRow, kinds: Sequence[LabelledKind]) -> ReadRow:
        arrays, labels = {}, {}
        for kind in kinds:
            arrays[kind.name], labels[kind.name] = self.tokens(kind, row)
        targets = {kind.name: kind.targets(row.labels[kind.name], labels[kind.name]) for kind in kinds}
        size = sum(len(own) for own in (*arrays.values(), *labels.values()))
        return ReadRow(arrays, size, dict.fromkeys(arrays, 1), targets, labels, row.labels)

    @abstractmethod
    def tokens(self, kind: Any, row: LabelledRow) -> tuple[Array, Array]:
        """Return the tokens of a row's input and of its label, int64. Raises InvalidInput."""

    def collate(self, rows: Sequence[ReadRow]) -> tuple[Arrays, Arrays]:
        examples = [(kind.name, row) for kind in self.kinds for row in rows if kind.name in row.targets]
        ids = [row.arrays[task] for task, row in examples]
        found = {
            "input_ids": padded(ids, self._pad_id),
            "attention_mask": padded([np.ones_like(own) for own in ids], 0),
            LABELS: padded([row.targets[task][0] for task, row in examples]),
        }
        places = {
            kind.name: np.array(
                [place for place, (task, _) in enumerate(examples) if task == kind.name], dtype=np.int64
            )
            for kind in self.kinds
        }
        return found, places

    @cached_property
    def _pad_id(self) -> int:
        return Checkpoint(self.backbone, "train.backbone").pad_id

    def network(self, backbone: Any, modules: Mapping[str, Any], recipe: Recipe) -> WritingNetwork:
        tasks = [WritingTask(kind) for kind in self.kinds]
        return WritingNetwork(WritingBackbone(backbone, frozen=False), tasks, recipe.weights)

    def complete(self, backbone: Any, missing: Sequence[str]) -> None:
        if missing:
            raise ConfigurationError(
                f"train.backbone: {self.backbone} has no weights for {missing[0]}; name a whole model"
            )


class TrainedTextToText(WrittenTexts):
    """Inputs as the worker reads them, long ones cut; targets as transformers' tokenizer writes them."""

    auto = "AutoModelForSeq2SeqLM"

    def __init__(
        self, backbone: Path, out: Path, train: TrainTable, tasks: Sequence[Any], rows: Mapping[Part, Any]
    ) -> None:
        super().__init__(backbone, out, train, tasks, rows)
        lengths = {kind.name: [*self._lengths[kind.name]] for kind in tasks}
        for kind in tasks:
            kind.lengths = max(lengths[kind.name]), min(lengths[kind.name])
        served_folder.change_generation(out, lambda settings: fitted_lengths(settings, tasks))
        vars(self).pop("model", None)  # its limit of tokens was another one

    def check_backbone(self, checkpoint: Checkpoint) -> None:
        if find_spec("sacrebleu") is None:
            raise ConfigurationError("tasks: text-to-text needs sacrebleu; pip install 'argosy[train]'")
        if not checkpoint.config.get("is_encoder_decoder"):
            problem = f"{checkpoint.folder} is no encoder with a decoder, which text-to-text needs"
            raise ConfigurationError(f'train.backbone: {problem}; name one such as "translation"')
        if getattr(self._targets, "src_lang", None) is not None:
            problem = f"{checkpoint.folder} writes several languages, whose marks are not set here"
            raise ConfigurationError(f"train.backbone: {problem}; name a model of one language pair")

    @cached_property
    def _targets(self) -> Any:
        """transformers' tokenizer, which has a mode of its own for targets."""
        import transformers

        return transformers.AutoTokenizer.from_pretrained(self.backbone, local_files_only=True, trust_remote_code=False)

    @cached_property
    def _lengths(self) -> dict[str, set[int]]:
        return {kind.name: set() for kind in self.kinds}

    def tokens(self, kind: Any, row: LabelledRow) -> tuple[Array, Array]:
        head = self.model.heads[kind.name]
        [sequence] = head.read(kind.content(row.columns, row.origin), kind.params).sequences
        label = np.asarray(self._targets(text_target=row.labels[kind.name])["input_ids"], dtype=np.int64)
        positions = head.checkpoint.config.get("max_position_embeddings")
        if isinstance(positions, int) and len(label) >= positions:
            problem = f"has {len(label):,} tokens, over {positions - 1:,}, the most that the model writes"
            raise InvalidInput(kind.label_from, problem, "shorten it, or take the row out")
        self._lengths[kind.name].add(len(label))
        return sequence.ids.astype(np.int64), label

    def load(self) -> tuple[Any, Sequence[str]]:
        import transformers

        network, missing = super().load()
        if not hasattr(network, "prepare_decoder_input_ids_from_labels"):
            problem = f"{type(network).__name__} does not say how its decoder reads labels"
            raise ConfigurationError(f"train.backbone: {problem}; name a BART, Marian, Pegasus or T5")
        network.generation_config = transformers.GenerationConfig.from_pretrained(
            self.out / served_folder.BACKBONE, local_files_only=True
        )
        return network, missing

    def judged(self, network: Any, rows: Sequence[ReadRow], batch: Mapping[str, torch.Tensor]) -> list[Judged]:
        heads = self.model.heads
        first = self.kinds[0]
        written = network.generated(batch, heads[first.name].settings(first.params))
        _, places = self.collate(rows)
        found: list[Judged] = []
        for number, kind in enumerate(self.kinds):
            own = [row for row in rows if kind.name in row.labels]
            for row, place in zip(own, places[kind.name], strict=True):
                text = self.model.heads[kind.name].tokenizing.tokenizer.decode(written[place], skip_special_tokens=True)
                found.append((number, {"text": text}, row.labels[kind.name]))
        return found


class TrainedDialogues(WrittenTexts):
    """Dialogues by the chat template of the checkpoint. Long ones are cut."""

    auto = "AutoModelForCausalLM"

    def check_backbone(self, checkpoint: Checkpoint) -> None:
        if checkpoint.config.get("is_encoder_decoder"):
            problem = f"{checkpoint.folder} is an encoder with a decoder, and dialogue needs a decoder"
            raise ConfigurationError(f'train.backbone: {problem}; name one such as "chat"')

    @cached_property
    def _prompts(self) -> Any:
        prompts = self.model.prompts
        if not prompts.chats:
            problem = f"{self.backbone} has no chat template"
            raise ConfigurationError(f'train.backbone: {problem}; name a model that chats, such as "chat"')
        if not prompts.eos:
            raise ConfigurationError(
                f"train.backbone: {self.backbone} names no token that ends an answer (eos_token_id)"
            )
        return prompts

    def tokens(self, kind: Any, row: LabelledRow) -> tuple[Array, Array]:
        messages = row.labels[kind.name]
        text, spans = self._answers(messages)
        encoding = self._prompts.tokenizing.as_written(text)
        ids = np.array(encoding.ids, dtype=np.int64)
        labels = np.full_like(ids, IGNORED)
        starts = np.array([start for start, _ in encoding.offsets])
        for start, end in spans:
            own = np.flatnonzero((starts >= start) & (starts < end))
            ends = own[np.isin(ids[own], self._prompts.eos)]
            if not len(ends):
                problem = f"the chat template of {self.backbone} ends an answer with no token that ends generation"
                raise ConfigurationError(f"train.backbone: {problem}; correct eos_token_id in generation_config.json")
            own = own[own <= ends[-1]]  # such as a line break behind it, which nobody will write
            labels[own] = ids[own]
        labels[0] = IGNORED
        most = self._prompts.max_tokens
        if not (labels[:most] != IGNORED).any():
            raise InvalidInput(kind.label_from, str(too_long(int(np.argmax(labels != IGNORED)), most)))
        return ids[:most], labels[:most]

    def _answers(self, messages: Sequence[DialogueMessage]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a dialogue, and the characters of its answers that are learnt.

        An answer is the text that the template adds to the prompt that a worker would make of the messages before.
        """
        turns = as_turns(messages)
        text, spans = self._prompts.rendered(turns, ask=False), []
        for place, message in enumerate(messages):
            if message.is_learnt:
                prompt = self._prompts.rendered(turns[:place])
                whole = self._prompts.rendered(turns[: place + 1], ask=False)
                if not whole.startswith(prompt):
                    problem = f"message {place} does not go on from the prompt that the chat template makes before it"
                    raise InvalidInput("messages", problem, "correct the template (chat_template.jinja)")
                if not text.startswith(whole):
                    problem = f"message {place} is written in another way once others follow, by the chat template"
                    raise InvalidInput("messages", problem, 'write a row for each answer, or give others "weight": 0')
                spans.append((len(prompt), len(whole)))
        return text, spans

    def judged(self, network: Any, rows: Sequence[ReadRow], batch: Mapping[str, torch.Tensor]) -> list[Judged]:
        found: list[Judged] = []
        for number, (kind, values) in enumerate(zip(self.kinds, network.values(batch), strict=True)):
            counted = kind.terms(batch[f"{TO}{kind.name}"]).tolist()
            sums = values[:, 0].double().sum(1).tolist()
            own = [row for row in rows if kind.name in row.labels]  # without any, the values are of a blank
            for row, tokens, (loss, right) in zip(own, counted, sums, strict=False):
                found.append((number, TokenScores(loss, int(right), tokens), row.labels[kind.name]))
        return found
