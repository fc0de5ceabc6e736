"""Any Hugging Face text model that answers in a single pass. Its tasks share the pass; equal sequences run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from producers.wire.catalogue import Task
from workers.models.backends.choice import runtimes
from workers.models.huggingface import token_sequences, tokenizer_file
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderModel, read_for_each
from workers.models.huggingface.text import (
    answers,
    compared_network,
    entities,
    label_heads,
    mask_filling,
    task_heads,
    token_block,
    vectors,
)
from workers.models.huggingface.text.compared_network import ComparedNetwork
from workers.models.huggingface.text_head import EncoderOptions, TextHead
from workers.models.huggingface.token_sequences import Batch, Row
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.sample_inputs import Item
from workers.models.interface.text_block import OF_ITEMS, BlockAnswers, TextBlock
from workers.models.sources import model_source

if TYPE_CHECKING:
    import torch

    from workers.models.huggingface.exported import Exported, Inputs

#: The head of each kind. Zero-shot classification has two heads: see `_head_class`.
HEADS: Mapping[str, type[TextHead]] = {
    "text-classification": label_heads.Classification,
    "token-classification": entities.TokenClassification,
    "question-answering": answers.QuestionAnswering,
    "fill-mask": mask_filling.FillMask,
    "feature-extraction": vectors.FeatureExtraction,
    "sentence-similarity": vectors.SentenceSimilarity,
    "zero-shot-classification": vectors.Similarity,
}


class EncoderModel(FolderModel[TextHead]):
    """A text backbone with a head for each task."""

    options_class = EncoderOptions
    options: EncoderOptions

    tunable = True
    backends = ("torch", "openvino", "onnxruntime")
    budgets = (256, 512, 1024, 2048, 4096)

    #: Heads are small, and some depend on data in a way that cannot be traced: the masks' positions, a text's length.
    SPLIT = True
    PADDABLE = True

    # --- in the parent process ---

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Tokenise an input for each of its tasks. A task that cannot use the input is refused alone."""
        readings, refused = read_for_each(params, lambda task, chosen: self.heads[task].read(content, chosen))
        arrays = token_sequences.pack({task: reading.sequences for task, reading in readings.items()})
        asides = {task: reading.aside for task, reading in readings.items()}
        return Prepared(arrays, int(arrays["lengths"].sum()), digest(arrays), refused, asides)

    def prepare_many(
        self, contents: Sequence[Any], params: Sequence[Mapping[str, msgspec.Struct]]
    ) -> list[Prepared | Exception]:
        """Tokenise texts together, once for all of their tasks."""
        texts: dict[int, tuple[Tokenizing, dict[str, None]]] = {}
        for content, own in zip(contents, params, strict=True):
            for head in (self.heads[task] for task in own if isinstance(content, str)):
                texts.setdefault(id(head.tokenizing), (head.tokenizing, {}))[1][head.whole(content)] = None
        with ExitStack() as stack:
            for tokenizing, wanted in texts.values():
                stack.enter_context(tokenizing.ahead([*wanted]))
            return super().prepare_many(contents, params)

    def prepare_block(self, contents: Sequence[str], params: Mapping[str, msgspec.Struct]) -> TextBlock | None:
        """Tokenise the texts of classifications and embeddings, if a text is the same sequence for each of them."""
        heads = [self.heads[task] for task in params]
        if not all(head.in_blocks for head in heads) or any(getattr(own, "explain", False) for own in params.values()):
            return None
        tokenizing, max_tokens = heads[0].tokenizing, heads[0].max_tokens
        alike = all(head.tokenizing is tokenizing and head.whole("a") == "a" for head in heads)
        changed = any(getattr(type(self), name) is not getattr(EncoderModel, name) for name in OF_ITEMS)
        if not alike or changed or tokenizing.has_types:
            return None
        cut = all(getattr(own, "truncation", False) for own in params.values())
        return token_block.tokenised(tokenizing, contents, max_tokens, cut=cut)

    def collate_blocks(self, parts: Sequence[tuple[TextBlock, Array]]) -> Arrays:
        return token_block.sequences([(block.data, rows) for block, rows in parts], tuple(self.spec.tasks))

    def finish_block(self, task: Task, outputs: Array, params: msgspec.Struct) -> BlockAnswers:
        return self.heads[task.name].finish_block(outputs[:, 0], params)

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Concatenate the rows' sequences; equal sequences appear once (see `token_sequences`)."""
        return token_sequences.collate([row.arrays for row in rows], tuple(self.spec.tasks))

    def samples(self, count: int) -> list[Item]:
        """Sample inputs by kind; texts with a mask for fill-mask tasks."""
        found: list[Item] = []
        masking = {task: head for task, head in self.heads.items() if isinstance(head, mask_filling.FillMask)}
        for content, params in super().samples(count):
            if plain := {task: own for task, own in params.items() if task not in masking}:
                found.append((content, plain))
            found += [(head.masked(content), {task: params[task]}) for task, head in masking.items() if task in params]
        return found

    def _checkpoint_of(self, task: str) -> Checkpoint:
        folder = self._own_folders.get(task)
        if folder is not None and task_heads.is_task_head(folder):
            return task_heads.TaskCheckpoint(self.spec.folder, self.where, folder)
        return super()._checkpoint_of(task)

    def _head(self, task: Task, checkpoint: Checkpoint) -> TextHead:
        longest = self.checkpoint.max_tokens
        max_tokens = min(longest, self.options.max_tokens or longest)
        class_ = _head_class(task, checkpoint)
        tokenizing = self._lowering if issubclass(class_, vectors.Vectors) else self._tokenizing
        return class_(task, checkpoint, tokenizing, max_tokens, self.options)

    @cached_property
    def _tokenizing(self) -> Tokenizing:
        return Tokenizing(self.checkpoint)

    @cached_property
    def _lowering(self) -> Tokenizing:
        """The tokenizer of vectors; sentence-transformers can have it write all letters small."""
        lowers = self.checkpoint.sentence_settings.get("do_lower_case")
        return Tokenizing(self.checkpoint, lower_case=True) if lowers else self._tokenizing

    # --- in the device process ---

    _gives_types = False

    #: Whether a load may take the network's file alone, once an earlier one has compared it with the weights.
    RECALLS: ClassVar[bool] = True

    _earlier: ComparedNetwork | None = None

    #: Whether rows of different adapters share a pass.
    shares_adapters = True

    def load(self, device: str) -> None:
        outcome = self._outcome if device == "cpu" else None
        self._earlier = compared_network.read(outcome, self._tokenizer_file) if outcome else None
        self._gives_types = self._earlier.gives_types if self._earlier else self._tokenizing.check()
        super().load(device)
        for task, head in self.heads.items():
            head.adapt(self.networks.network(task))
        if self.adapters:
            self.shares_adapters = self.networks.shares_adapters(self._examples()[0])
        if outcome and self.networks.traced:
            self.loads_lighter = self._keep(outcome, self.networks.traced)

    def _keep(self, outcome: Path, network: Exported) -> bool:
        """Keep the comparison for later loads, if they can do without the weights. Return whether they can."""
        example = self._examples()[0]
        heads = self.networks.linear_heads(example) if network.is_flat else None
        if heads is None:
            return False
        found = ComparedNetwork(
            inputs=network.inputs,
            heads={task: head.feature for task, head in heads.items()},
            settings=compared_network.settings_of(self.networks.config),
            gives_types=self._gives_types,
            tokenizer=str(self._tokenizer_file),
            files=compared_network.states_of(self._cache_file(example)),
        )
        return compared_network.keep(outcome, found, heads)

    @property
    def _outcome(self) -> Path | None:
        """The file in the cache with the outcome of the comparison with the weights.

        None for a model that has no such comparison.
        """
        backend = self._backend
        traced = backend.name in ("onnxruntime", "openvino") and not backend.device and self.onnx is None
        if not (self.RECALLS and traced) or self.adapters:
            return None
        read = sorted((task, head.auto, head.checkpoint.folder) for task, head in self.heads.items())
        heads = [(task, auto, str(folder), model_source.folder_revision(folder)) for task, auto, folder in read]
        return self._kept("compared", f"{backend} {runtimes()} {heads}")

    @property
    def _tokenizer_file(self) -> Path:
        return tokenizer_file.locate(self.checkpoint)

    def _recall(self) -> bool:
        if self._earlier is None or self._outcome is None:
            return False
        from workers.models.huggingface.exported import Recalled

        self.networks.config = self._earlier.config
        example, _ = self._examples()
        cache = self._cache_file(example)
        if compared_network.states_of(cache) != self._earlier.files:
            return False  # it was made again, or is damaged: it is compared again
        try:
            heads = compared_network.heads(self._outcome, self._earlier)
            network = Recalled(self._backend, example, self._earlier.inputs, cache, self.spec.folder)
        except FileNotFoundError:  # the cache keeps a few networks only
            return False
        self.networks.recall(network, heads)
        return True

    @property
    def _counted(self) -> int | None:
        """The end token for encoder-decoders: they classify at the last one, and want equally many in each row."""
        config = self.networks.config
        return config.eos_token_id if getattr(config, "is_encoder_decoder", False) else None

    def _examples(self) -> tuple[Inputs, Inputs]:
        rows = [self.prepare(content, params) for content, params in self.samples(6)]
        batch = Batch(self.collate(rows), self.checkpoint.pad_id)
        places = sorted(range(len(batch.sequences)), key=lambda place: -len(batch.sequences[place].ids))[:3]
        longest = batch.longest
        lengths = ((min(9, longest), min(5, longest)), (longest, longest // 2, 3))
        few, many = (self._inputs(batch.padded(places[: len(own)], own)) for own in lengths)
        return few, many

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        batch = Batch(arrays, self.checkpoint.pad_id)
        needs = {task: batch.of(task, rows) for task, rows in wanted.items()}
        by_task = {
            task: {Row(int(place), self.networks.adapter_number(task)) for own in rows for place in own}
            for task, rows in needs.items()
        }
        found: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        with torch.inference_mode():
            every = set().union(*by_task.values())
            for group in batch.passes(
                every,
                equal_lengths=self.equal_lengths,
                counted=self._counted,
                short=self.checkpoint.short_tokens,
                shares_adapters=self.shares_adapters,
            ):
                chosen = {task: [n for n, row in enumerate(group) if row in rows] for task, rows in by_task.items()}
                self._run(batch, group, {task: rows for task, rows in chosen.items() if rows}, found)
        return {task: token_sequences.stacked(found[task].__getitem__, own) for task, own in needs.items()}

    def _run(
        self,
        batch: Batch,
        group: Sequence[Row],
        chosen: Mapping[str, Sequence[int]],
        found: dict[str, dict[int, Array]],
    ) -> None:
        """Run a pass over a group of sequences, and each wanted head over the sequences that it needs."""
        import torch

        inputs = self._inputs(batch.padded([row.place for row in group]))
        rows = {task: torch.tensor(own, device=self._device) for task, own in chosen.items()}
        for task, output in self.networks.run(inputs, rows, [row.adapter for row in group]).items():
            own = {name: tensor.index_select(0, rows[task]) for name, tensor in inputs.items()}
            results = self.heads[task].compute(output, own).float().cpu().numpy()
            for n, result in zip(chosen[task], results, strict=True):
                place = group[n].place
                length = len(batch.sequences[place].ids)
                found[task][place] = result[:length] if self.heads[task].by_token else result

    def _inputs(self, padded: Arrays) -> dict[str, torch.Tensor]:
        import torch

        inputs = {"input_ids": padded["ids"], "attention_mask": padded["mask"]}
        if self._gives_types and getattr(self.networks.config, "type_vocab_size", 2) > 1:
            inputs["token_type_ids"] = padded["types"]
        return {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}


def _head_class(task: Task, checkpoint: Checkpoint) -> type[TextHead]:
    if isinstance(checkpoint, task_heads.TaskCheckpoint):
        return task_heads.PooledClassification
    if task.kind.name == "zero-shot-classification" and label_heads.entailment_label(checkpoint.labels) is not None:
        return label_heads.Inference
    return HEADS[task.kind.name]
