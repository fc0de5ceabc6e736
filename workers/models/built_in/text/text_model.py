"""The text model: a BERT-like encoder from a Hugging Face folder, pooled, with small heads for its tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import field

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InputTooLarge, InputUnavailable, InvalidInput
from producers.wire.kinds.retrieval import PassageRetrievalParams
from producers.wire.kinds.text import (
    FeatureExtractionParams,
    TextClassificationParams,
    TokenClassificationParams,
    ZeroShotClassificationParams,
)
from workers.models.built_in.multitask import head_file
from workers.models.built_in.multitask.multitask_model import MultiTaskModel, MultiTaskOptions
from workers.models.built_in.text import retrieval, token_labelling
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.text import likeness, token_block
from workers.models.huggingface.text.entities import Entities
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface import ragged, sample_inputs
from workers.models.interface.model import SCORE_DIGITS, Array, Arrays, ModelSpec, Prepared, digest
from workers.models.interface.options import Count, Table, Text
from workers.models.interface.text_block import OF_ITEMS, TextBlock
from workers.models.sources import model_source

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding

    from workers.models.built_in.multitask.multitask_model import Features

#: Heads trained by `workers/shipped_heads/text/text_heads.py`, a folder for each task; the option `heads` adds more.
BUILTIN_HEADS = model_source.BUNDLED


#: The parameters of the tasks whose texts may form a block.
_SIMPLE = (TextClassificationParams, FeatureExtractionParams)


class TextOptions(MultiTaskOptions, frozen=True):
    """The options of the text model.

    `max_tokens` defaults to the encoder's positions. `heads` is a folder with a folder for each task. `indexes` maps
    each task of the kind passage-retrieval to the folder that `argosy index` wrote.
    """

    max_tokens: Count | None = None
    heads: Text | None = None
    indexes: Table = field(default_factory=dict)


class TextModel(MultiTaskModel):
    """An encoder and the heads of its tasks."""

    options_class = TextOptions
    options: TextOptions

    budgets = (256, 512, 1024, 2048, 4096)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._heads: dict[str, Any] = {}

    # --- in the parent process ---

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Tokenise a text.

        Too long a text is refused for each task that neither sets `truncation` nor reads windows.
        """
        if isinstance(content, bytes):
            raise InvalidInput("input", "must be text, not bytes", "decode it before it is submitted")
        encoding = self._tokenizing.encode(content)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        if sum(encoding.special_tokens_mask) == len(ids):
            raise InvalidInput("input", "is empty or has no readable characters", "give it some text")
        refused = self._without_index(params)
        labelled, asides = token_labelling.read(content, encoding, params, self._entities)
        if len(ids) > self.max_tokens:
            refused |= self._refusals(len(ids), params)
            ids = np.asarray(self._cut(content).ids, dtype=np.int32)
        if refused and len(refused) == len(params):
            raise next(iter(refused.values()))
        arrays = {"ids": ids} | self._hypotheses(params) | retrieval.asked(params) | labelled
        size = len(ids) + sum(len(more) for name, more in labelled.items() if name.startswith("window_ids/"))
        return Prepared(arrays, size, digest(arrays), refused, asides)

    def prepare_many(
        self, contents: Sequence[str | bytes], params: Sequence[Mapping[str, msgspec.Struct]]
    ) -> list[Prepared | Exception]:
        """Tokenise texts together."""
        texts = [content for content in contents if isinstance(content, str)]
        # a class of one's own may want the positions
        offsets = type(self).prepare is not TextModel.prepare or any(
            isinstance(chosen, TokenClassificationParams) for own in params for chosen in own.values()
        )
        with self._tokenizing.ahead(texts, offsets=offsets):
            return super().prepare_many(contents, params)

    def prepare_block(self, contents: Sequence[str], params: Mapping[str, msgspec.Struct]) -> TextBlock | None:
        """Tokenise the texts of classifications and embeddings. A feature cache needs a digest of each text."""
        own = any(getattr(type(self), name) is not getattr(TextModel, name) for name in OF_ITEMS)
        if own or self.knows_contents or not all(type(chosen) in _SIMPLE for chosen in params.values()):
            return None
        if any(getattr(chosen, "explain", False) for chosen in params.values()):
            return None
        cut = all(getattr(chosen, "truncation", False) for chosen in params.values())
        return token_block.tokenised(self._tokenizing, contents, self.max_tokens, cut=cut)

    def collate_blocks(self, parts: Sequence[tuple[TextBlock, Array]]) -> Arrays:
        ids, mask = token_block.padded([(block.data, rows) for block, rows in parts], self._pad_id)
        return {"ids": ids, "mask": mask}

    def _hypotheses(self, params: Mapping[str, msgspec.Struct]) -> Arrays:
        """Return the tokens of the labels that zero-shot tasks compare with the text."""
        return likeness.attached(
            {
                task: [np.asarray(self.encoding(text).ids, dtype=np.int32) for text in likeness.hypotheses(own)]
                for task, own in likeness.wanted(params).items()
            }
        )

    def _refusals(self, tokens: int, params: Mapping[str, msgspec.Struct]) -> dict[str, InvalidInput]:
        error = InputTooLarge(
            "input", f"has {tokens:,} tokens, over {self.max_tokens}", "split the text, or set `truncation` to cut it"
        )
        cut = {task for task, chosen in params.items() if getattr(chosen, "truncation", False)}
        return dict.fromkeys(params.keys() - cut - self._entities.keys(), error)

    def _without_index(self, params: Mapping[str, msgspec.Struct]) -> dict[str, InvalidInput]:
        """Return the error of each task whose index is missing or outdated, by task.

        Indexes are checked for every item, because they may be made or replaced while the worker runs.
        """
        refused: dict[str, InvalidInput] = {}
        for task in params.keys() & self._indexes.keys():
            try:
                self._indexes[task].check(self.spec.revision)
            except InputUnavailable as error:
                refused[task] = error
        return refused

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Pad to the longest row: `ids` and `mask`, both `(rows, tokens)`; the labels of zero-shot tasks likewise."""
        ids, mask = self._padded([row.arrays["ids"] for row in rows])
        batch = {"ids": ids, "mask": mask}
        hypotheses, places = likeness.placed([row.arrays for row in rows], self._zero_shot)
        if hypotheses:
            batch["label_ids"], batch["label_mask"] = self._padded(hypotheses)
        batch |= token_labelling.collate([row.arrays for row in rows], list(self._entities), ids.shape[1], self._pad_id)
        return batch | places | retrieval.counts([row.arrays for row in rows], list(self._indexes))

    def _padded(self, sequences: Sequence[Array]) -> tuple[Array, Array]:
        ids = np.full((len(sequences), max(map(len, sequences))), self._pad_id, dtype=np.int32)
        mask = np.zeros(ids.shape, dtype=np.bool_)
        for place, sequence in enumerate(sequences):
            ids[place, : len(sequence)] = sequence
            mask[place, : len(sequence)] = True
        return ids, mask

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        if isinstance(params, ZeroShotClassificationParams):
            best = likeness.answer(output, params)
            return [{"label": label, "score": round(score, SCORE_DIGITS)} for label, score in best]
        if isinstance(params, PassageRetrievalParams):
            return retrieval.answer(output, params)
        if isinstance(params, TokenClassificationParams):
            return self._entities[task.name].found(output, params, prepared.aside[task.name])
        return super().finish(task, output, params, prepared)

    @cached_property
    def _entities(self) -> dict[str, Entities]:
        """The reader of each token classification task."""
        return {
            name: Entities(self._tokenizing, self._labels[name], self.max_tokens)
            for name, task in self.spec.tasks.items()
            if task.kind.name == token_labelling.KIND
        }

    @cached_property
    def _indexes(self) -> dict[str, retrieval.IndexFile]:
        """The index of each retrieval task. Raises ConfigurationError for a task without an index."""
        found: dict[str, retrieval.IndexFile] = {}
        for name, task in self.spec.tasks.items():
            if task.kind.name == retrieval.KIND:
                where = f"models.{self.spec.name}.options.indexes.{name}"
                if name not in self.options.indexes:
                    raise ConfigurationError(f"{where}: is missing; set it to a folder written by `argosy index`")
                found[name] = retrieval.IndexFile(Path(self.options.indexes[name]), where)
        return found

    @cached_property
    def _zero_shot(self) -> tuple[str, ...]:
        return tuple(name for name, task in self.spec.tasks.items() if task.kind.name == likeness.KIND)

    @property
    def _weights(self) -> str:
        _ = self._indexes  # report a task without an index when the worker starts
        files = [self._head_files[name] for name in sorted(self._head_files)]
        return f"{self.spec.revision}+heads.{head_file.digest(files)}"

    def samples(self, count: int) -> Sequence[sample_inputs.Item]:
        # retrieval depends on an index, which may not exist yet
        tasks = {name: task for name, task in self.spec.tasks.items() if name not in self._indexes}
        return sample_inputs.for_tasks(tasks, count)

    def labels(self, task: Task) -> Sequence[str]:
        return self._labels[task.name]

    @property
    def max_tokens(self) -> int:
        """The length of the longest text in tokens, special tokens included."""
        positions = int(self._config.get("max_position_embeddings", 512))
        return min(positions, self.options.max_tokens or positions)

    @cached_property
    def _config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.spec.folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"models.{self.spec.name}: {error}; pull it: argosy models pull") from error
        return config

    @cached_property
    def _pad_id(self) -> int:
        return int(self._config.get("pad_token_id") or 0)

    @cached_property
    def mask_id(self) -> int | None:
        """The id of the tokenizer's mask token, or None."""
        return self._tokenizing.tokenizer.token_to_id("[MASK]")

    def encoding(self, text: str) -> Encoding:
        """Tokenise a text, with the tokens' offsets, and truncate it to `max_tokens`. Raises InvalidInput."""
        encoding = self._tokenizing.encode(text)
        return encoding if len(encoding.ids) <= self.max_tokens else self._cut(text)

    def _cut(self, text: str) -> Encoding:
        return self._tokenizing.cut(text, None, self.max_tokens)

    @cached_property
    def _tokenizing(self) -> Tokenizing:
        return Tokenizing(Checkpoint(self.spec.folder, f"models.{self.spec.name}"))

    @cached_property
    def _labels(self) -> dict[str, tuple[str, ...]]:
        return {name: head_file.read_labels(path) for name, path in self._head_files.items()}

    @cached_property
    def _head_files(self) -> dict[str, Path]:
        """The head of each classification task. Heads in the option `heads` come before the built-in heads."""
        folders = [Path(self.options.heads)] if self.options.heads else []
        found: dict[str, Path] = {}
        for task in self.spec.tasks.values():
            if task.name in self._zero_shot or not task.kind.name.endswith("classification"):
                continue
            files = [folder / task.name / head_file.FILE for folder in (*folders, BUILTIN_HEADS)]
            existing = next((file for file in files if file.is_file()), None)
            if existing is None:
                problem = f"no head for {task.name!r}: {files[0]} does not exist"
                raise ConfigurationError(f"models.{self.spec.name}: {problem}")
            found[task.name] = existing
        return found

    # --- in the device process ---

    def _load(self, device: str) -> None:
        self._heads = {name: head_file.load(path).eval().to(device) for name, path in self._head_files.items()}

    def _network(self) -> torch.nn.Module:
        from workers.models.built_in.text.text_network import TextEncoder

        # copying token features costs time, and only some heads read them; without heads, training reads all
        keep = {"pooled", "layers", *(name for module in self._heads.values() for name in module.reads)}
        return TextEncoder(self.spec.folder, keep if self._heads else None).eval()

    def _example(self) -> Arrays:
        ids = np.full((2, 9), self._pad_id + 1, dtype=np.int32)
        mask = np.ones(ids.shape, dtype=np.bool_)
        mask[1, 5:] = False
        return {"ids": ids, "mask": mask}

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> Features:
        """Return the encoder's features (see `TextEncoder.forward`) together with the input arrays."""
        # before the texts: the network's next call may overwrite its result
        labels = {}
        if "label_ids" in arrays:
            labels["label_vectors"] = self._remembered.vectors(arrays["label_ids"], arrays["label_mask"])
        return super().encode({name: arrays[name] for name in ("ids", "mask")}) | dict(arrays) | labels

    @cached_property
    def _remembered(self) -> likeness.Remembered:
        encode = super().encode
        return likeness.Remembered(lambda ids, mask: encode({"ids": ids, "mask": mask})["pooled"])

    def _rows_of(self, arrays: Arrays, places: Sequence[int]) -> Arrays:
        rows = super()._rows_of({name: arrays[name] for name in ("ids", "mask")}, places)
        length = int(rows["mask"].sum(1).max())
        return {name: np.ascontiguousarray(row[:, :length]) for name, row in rows.items()}

    def _lengths(self, arrays: Arrays) -> Sequence[int]:
        return [int(length) for length in arrays["mask"].sum(1)]

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        windows = token_labelling.taken(arrays)
        labelled = {name: rows for name, rows in wanted.items() if name in self._entities}
        # before the texts, and copied: the backend's next call may overwrite its result
        more = token_labelling.further(windows, labelled, self._label_windows)
        outputs = super().forward(arrays, wanted)
        return outputs | {name: token_labelling.joined(outputs[name], more.get(name, ())) for name in labelled}

    def _label_windows(self, windows: Arrays, tasks: Sequence[str]) -> Mapping[str, torch.Tensor]:
        import torch

        with torch.inference_mode():
            features = self._encoded({name: self._tensor(array) for name, array in windows.items()})
            modules = {name: self._heads[name] for name in tasks}
            return {name: module({part: features[part] for part in module.reads}) for name, module in modules.items()}

    def _run_head(self, name: str, features: Features, rows: Array) -> Array:
        if name not in self._indexes:
            return super()._run_head(name, features, rows)
        texts = features["pooled"].index_select(0, self._tensor(rows))
        wanted = features[f"top/{name}"].cpu().numpy()[rows]
        return ragged.pack(self._indexes[name].held(self._device).nearest(texts, wanted.tolist()))

    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        if task.name in self._zero_shot:
            places = features[f"labels/{task.name}"]
            return likeness.cosines(features["pooled"], features["label_vectors"], rows, places)
        if task.name not in self._heads:
            return features["pooled"].index_select(0, rows)
        scores = self.logits(task.name, features, rows)
        return scores if task.name in self._entities else scores.softmax(-1)

    def logits(self, task: str, features: Features, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits of a classification task for its rows, `(rows, labels)`."""
        module = self._heads[task]
        scores: torch.Tensor = module({name: features[name].index_select(0, rows) for name in module.reads})
        return scores
