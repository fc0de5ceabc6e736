"""Any Hugging Face text model that answers in one pass: its tasks share that pass, each sequence of a batch runs once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from producers.catalogue import Task
from producers.errors import ConfigurationError, InvalidInput
from workers.models import sources
from workers.models.huggingface import answers, entities, labels, masks, sequences, vectors
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.head import TextHead
from workers.models.huggingface.networks import Network, Networks
from workers.models.huggingface.sequences import Batch, Reading
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.model import Array, Arrays, Model, ModelSpec, Prepared

if TYPE_CHECKING:
    import torch

#: The head of each kind. Zero-shot classification has two: see `_head_class`.
HEADS: Mapping[str, type[TextHead]] = {
    "text-classification": labels.Classification,
    "token-classification": entities.TokenClassification,
    "question-answering": answers.QuestionAnswering,
    "fill-mask": masks.FillMask,
    "feature-extraction": vectors.FeatureExtraction,
    "sentence-similarity": vectors.SentenceSimilarity,
    "zero-shot-classification": vectors.Similarity,
}

#: What the folder of this model's weights is asked for; `heads` names other folders, for tasks on the same backbone.
OPTIONS = ("max_tokens", "precision", "heads", "function_to_apply", "pooling")


class EncoderModel(Model):
    """Options: `max_tokens`, `precision` (float32), `heads` (folders by task), `function_to_apply` (by task), `pooling`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._networks: Networks | None = None
        self._device = "cpu"

    @property
    def passes(self) -> int:
        """How often the backbone ran: once a batch, or more often where its texts are of very different lengths."""
        return self._networks.passes if self._networks else 0

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        for head in self._heads.values():
            head.check()  # a wrong setting is found when the worker starts
        own = [sources.folder_revision(Path(folder)) for folder in self._own_folders.values()]
        return "+".join((self.spec.revision, *own))

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Tokenise an input for each of its tasks; a task that it is of no use to is refused by itself."""
        readings: dict[str, Reading] = {}
        refused: dict[str, InvalidInput] = {}
        for task, chosen in params.items():
            try:
                readings[task] = self._heads[task].read(content, chosen)
            except InvalidInput as error:
                refused[task] = error
        if not readings:
            raise next(iter(refused.values()))
        arrays = sequences.pack({task: reading.sequences for task, reading in readings.items()})
        asides = {task: reading.aside for task, reading in readings.items()}
        return Prepared(arrays, int(arrays["lengths"].sum()), sequences.digest(arrays), refused, asides)

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Put the rows' sequences behind one another, equal ones once; see `workers.models.huggingface.sequences`."""
        return sequences.collate([row.arrays for row in rows], tuple(self.spec.tasks))

    def finish(self, task: Task, output: Array, params: msgspec.Struct) -> Any:
        """For kinds whose answers need nothing of the item but its output; entities and answers need `finish_item`."""
        return self._heads[task.name].finish(output, params, None)

    def finish_item(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return self._heads[task.name].finish(output, params, prepared.aside[task.name])

    @cached_property
    def _heads(self) -> Mapping[str, TextHead]:
        if unknown := sorted(set(self.spec.options) - set(OPTIONS)):
            raise ConfigurationError(
                f"{self._where}.options.{unknown[0]}: not an option; these are: {', '.join(OPTIONS)}"
            )
        return {name: self._head(task) for name, task in self.spec.tasks.items()}

    def _head(self, task: Task) -> TextHead:
        checkpoint = Checkpoint(self._own_folders.get(task.name, self.spec.folder), self._where)
        longest = self._tokenizing.checkpoint.max_tokens
        max_tokens = min(longest, int(self.spec.options.get("max_tokens", longest)))
        return _head_class(task, checkpoint)(task, checkpoint, self._tokenizing, max_tokens, self.spec.options)

    @cached_property
    def _tokenizing(self) -> Tokenizing:
        return Tokenizing(Checkpoint(self.spec.folder, self._where))

    @property
    def _own_folders(self) -> dict[str, Path]:
        given = self.spec.options.get("heads", {})
        if unknown := sorted(set(given) - set(self.spec.tasks)):
            raise ConfigurationError(f"{self._where}.options.heads.{unknown[0]}: the model has no such task")
        return {task: Path(folder).expanduser() for task, folder in given.items()}

    @property
    def _where(self) -> str:
        return f"models.{self.spec.name}"

    # --- in the device process ---

    def load(self, device: str) -> None:
        self._device = device
        self._tokenizing.check()
        self._networks = Networks(
            {name: Network(head.checkpoint.folder, head.auto) for name, head in self._heads.items()},
            where=self._where,
            device=device,
            precision=str(self.spec.options.get("precision", "float32")),
        )
        self._networks.load()

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        batch = Batch(arrays, self._tokenizing.checkpoint.pad_id)
        needs = {task: batch.of(task, rows) for task, rows in wanted.items()}
        by_task = {task: {int(place) for own in rows for place in own} for task, rows in needs.items()}
        found: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        with torch.inference_mode():
            for group in batch.passes(set().union(*by_task.values())):
                chosen = {
                    task: [n for n, place in enumerate(group) if place in places] for task, places in by_task.items()
                }
                self._run(batch, group, {task: rows for task, rows in chosen.items() if rows}, found)
        return {task: sequences.stacked(found[task].__getitem__, own) for task, own in needs.items()}

    def _run(
        self,
        batch: Batch,
        group: Sequence[int],
        chosen: Mapping[str, Sequence[int]],
        found: dict[str, dict[int, Array]],
    ) -> None:
        """Run one pass over a group of sequences, and each wanted head over those of them that it needs."""
        import torch

        assert self._networks is not None, "loaded before the first batch"
        inputs = self._inputs(batch.padded(group))
        rows = {task: torch.tensor(own, device=self._device) for task, own in chosen.items()}
        for task, output in self._networks.run(inputs, rows).items():
            own = {name: tensor.index_select(0, rows[task]) for name, tensor in inputs.items()}
            results = self._heads[task].compute(output, own).float().cpu().numpy()
            for n, result in zip(chosen[task], results, strict=True):
                length = len(batch.sequences[group[n]].ids)
                found[task][group[n]] = result[:length] if self._heads[task].by_token else result

    def _inputs(self, padded: Arrays) -> dict[str, torch.Tensor]:
        import torch

        assert self._networks is not None, "loaded before the first batch"
        inputs = {"input_ids": padded["ids"], "attention_mask": padded["mask"]}
        if getattr(self._networks.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = padded["types"]
        return {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}


def _head_class(task: Task, checkpoint: Checkpoint) -> type[TextHead]:
    if task.kind.name == "zero-shot-classification" and labels.entailment_label(checkpoint.labels) is not None:
        return labels.Inference
    return HEADS[task.kind.name]
