"""The subject of a recipe: rows as the worker's model reads them, and a backbone with a head for each task."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint import Checkpoint, loading
from workers.models.huggingface.checkpoint_networks import replay
from workers.models.huggingface.text.task_attention import TaskAttention
from workers.models.interface.model import Array, Arrays
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.kinds.shared_network import COUNTS, INPUT, OF, TO, Backbone, SharedNetwork, TaskNetwork
from workers.training.loop.recipe import Recipe
from workers.training.loop.schedule import Place
from workers.training.loop.training_subject import Examples, Part, TrainingSubject
from workers.training.recipes import served_folder, stored_rows
from workers.training.recipes.labelled_rows import BadRows, LabelledRow
from workers.training.recipes.recipe_file import TrainTable
from workers.training.recipes.stored_rows import StoredRows
from workers.training.splits.layouts import NetworkShape

#: The folder of the rows' files.
_ROWS = "rows"

_MOST_NAMED = 10

#: A task's number, the worker's answer, and the label.
Judged = tuple[int, Any, Any]


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row as the worker's model reads it, and for each labelled task: targets, data for `finish`, and the label.

    `inputs` has the number of the backbone's inputs of each of these tasks.
    """

    arrays: Arrays
    size: int
    inputs: Mapping[str, int]
    targets: Mapping[str, Array]
    asides: Mapping[str, Any]
    labels: Mapping[str, Any]


class TrainedFolder(TrainingSubject):
    """Rows for a Hugging Face backbone. A stream has the rows with labels of the same tasks.

    Subclasses write `read` and `collate`, for a form of input.
    """

    #: transformers' class of the backbone.
    auto: ClassVar[str] = "AutoModel"

    def __init__(
        self, backbone: Path, out: Path, train: TrainTable, tasks: Sequence[LabelledKind], rows: Mapping[Part, Any]
    ) -> None:
        """`rows` are the labelled rows of each part, which are written to files: every process decodes its own.

        Raises BadRows for a row that the worker would refuse.
        """
        checkpoint = Checkpoint(backbone, "train.backbone")
        checkpoint.check_weights()
        self.backbone, self.out, self.train, self.kinds = backbone, out, train, tasks
        self.check_backbone(checkpoint)
        served_folder.write_settings(out, backbone, tasks)
        self.parts: Mapping[Part, StoredRows] = {
            part: stored_rows.write(out / _ROWS / f"{part}.arrow", own, self._sizes(own)) for part, own in rows.items()
        }

    def check_backbone(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigurationError for a backbone that these kinds do not train."""
        if checkpoint.config.get("is_encoder_decoder"):
            problem = f"{self.backbone} is an encoder-decoder, which these kinds do not train"
            raise ConfigurationError(f"train.backbone: {problem}; name an encoder")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out: each process reads its own."""
        return {name: vars(self)[name] for name in ("backbone", "out", "train", "kinds", "parts")}

    @cached_property
    def model(self) -> Any:
        """The worker's model of the folder, without weights."""
        return served_folder.model(self.out, "trained", self.kinds, self.train.max_tokens)

    @abstractmethod
    def read(self, row: LabelledRow, kinds: Sequence[LabelledKind]) -> ReadRow:
        """Return a row as the worker reads it, for these tasks. Raises InvalidInput."""

    @abstractmethod
    def collate(self, rows: Sequence[ReadRow]) -> tuple[Arrays, Arrays]:
        """Return the backbone's arguments, and for each task the places of its rows' inputs in them, one by one."""

    @property
    def tasks(self) -> Sequence[str]:
        return [task.name for task in self.kinds]

    @property
    def stream_sizes(self) -> tuple[int, ...]:
        return tuple(len(stream) for stream in self.parts["train"].streams)

    @property
    def stream_tasks(self) -> tuple[tuple[int, ...], ...]:
        names = [*self.tasks]
        return tuple(tuple(names.index(task) for task in tasks) for tasks in self.parts["train"].tasks)

    def examples(self, part: Part, device: str) -> FolderExamples:
        return FolderExamples(self, self.parts[part], device)

    def scores(self, judged: Sequence[Sequence[Judged]]) -> list[float]:
        return [scores[kind.metric] for kind, scores in zip(self.kinds, self.all_scores(judged), strict=True)]

    def all_scores(self, judged: Sequence[Sequence[Judged]]) -> list[dict[str, float]]:
        """Return each task's scores from answers and labels."""
        pairs: dict[int, list[tuple[Any, Any]]] = defaultdict(list)
        for task, answer, label in (one for part in judged for one in part):
            pairs[task].append((answer, label))
        return [kind.scores(pairs[number]) for number, kind in enumerate(self.kinds)]

    def read_columns(self, columns: Mapping[str, Any], origin: str) -> ReadRow:
        """Return a row as the worker reads it, for the tasks whose labels it has."""
        found = {kind.name: kind.label(columns, origin) for kind in self.kinds}
        labels = {name: label for name, label in found.items() if label is not None}
        kinds = [kind for kind in self.kinds if kind.name in labels]
        return self.read(LabelledRow(origin, columns, labels), kinds)

    def judged(self, network: Any, rows: Sequence[ReadRow], batch: Mapping[str, torch.Tensor]) -> list[Judged]:
        """Return the worker's answers to rows, which are the tensors of a batch."""
        found: list[Judged] = []
        for number, (kind, values) in enumerate(zip(self.kinds, network.values(batch), strict=True)):
            outputs, start = values.flatten(0, 1).cpu().numpy(), 0
            head = self.model.heads[kind.name]
            for row in rows:
                if kind.name in row.labels:
                    end = start + row.inputs[kind.name]
                    answer = head.finish(outputs[start:end], kind.params, row.asides[kind.name])
                    found.append((number, answer, row.labels[kind.name]))
                    start = end
        return found

    def _sizes(self, rows: Sequence[LabelledRow]) -> list[int]:
        """Return the costs of rows, which are all read once, so that bad ones are found before the training."""
        found, bad = [], []
        for row in rows:
            try:
                found.append(self.read(row, [kind for kind in self.kinds if kind.name in row.labels]).size)
            except InvalidInput as error:
                bad.append(InvalidInput(row.origin, str(error)))
        if bad:
            raise BadRows.of(bad[:_MOST_NAMED], max(0, len(bad) - _MOST_NAMED))
        return found

    # --- the network ---

    @property
    def shape(self) -> NetworkShape:
        writes = any(kind.writes for kind in self.kinds)
        return NetworkShape.of(self.backbone, self.train.sharing or "full", writes=writes)

    def build(self, recipe: Recipe) -> SharedNetwork:
        with loading(self.backbone, "train.backbone"):
            return self._build(recipe)

    def load(self) -> tuple[Any, Sequence[str]]:
        """Return the backbone, and the names of weights that its folder lacks."""
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()
        backbone, report = getattr(transformers, self.auto).from_pretrained(
            self.backbone,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        return backbone, sorted(report["missing_keys"])

    def _build(self, recipe: Recipe) -> SharedNetwork:
        torch.manual_seed(recipe.seed)  # also for weights that the backbone lacks: all processes have the same
        backbone, missing = self.load()
        self.complete(backbone, missing)
        modules = {kind.name: self._module(kind, backbone.config) for kind in self.kinds}
        for kind in self.kinds:
            if kind.head == "attention":
                seen = {name: modules[name] for name in (kind.name, *kind.fusion)}
                vars(self.model.heads[kind.name])["modules"] = seen  # these learn; a worker reads its own from files
        if self.train.sharing == "lora":
            _add_lora(backbone, self.train.lora_rank)
        elif self.train.sharing == "frozen":
            backbone.requires_grad_(requires_grad=False)
        network = self.network(backbone, modules, recipe)
        self._freeze_unused(network)
        return network

    def network(self, backbone: Any, modules: Mapping[str, Any], recipe: Recipe) -> SharedNetwork:
        """Return the network of a backbone and of the tasks' modules."""
        encoder = Backbone(backbone, frozen=self.train.sharing == "frozen")
        tasks = [TaskNetwork(kind, self.model.heads[kind.name], modules[kind.name]) for kind in self.kinds]
        return SharedNetwork(encoder, tasks, recipe.weights)

    def complete(self, backbone: Any, missing: Sequence[str]) -> None:
        """Take away a pooler without weights that no head reads. Raises ConfigurationError for others."""
        if not missing:
            return
        if all(name.startswith("pooler.") for name in missing) and all(k.head != "transformers" for k in self.kinds):
            backbone.pooler = None
        elif self.train.sharing != "full":
            problem = f"{self.backbone} has no weights for {missing[0]}, which {self.train.sharing} does not train"
            raise ConfigurationError(f'train.sharing: {problem}; use "full"')

    def _module(self, kind: LabelledKind, config: Any) -> Any:
        if kind.head == "attention":
            seen = sum(len(other.labels) for other in self.kinds if other.name in kind.fusion)
            module = TaskAttention(config.hidden_size, len(kind.labels), seen=seen)
            module.scale.fill_(kind.units[0])
            module.shift.fill_(kind.units[1])
            return module
        if kind.head == "transformers":
            head = self.model.heads[kind.name]
            return _new_head(head.auto, head.checkpoint.folder)
        return None

    def _freeze_unused(self, network: SharedNetwork) -> None:
        """Let parameters that no loss depends on require no gradient: DDP waits for all others."""
        examples = self.examples("train", "cpu")
        places = [(stream, 0) for stream in range(len(self.stream_sizes))]
        network.eval()
        network(**examples.batch(places))[0].backward()
        for parameter in network.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
        network.zero_grad()

    def merged(self, network: SharedNetwork) -> Any:
        """Return the trained backbone without adapters, and turn heads of transformers into the labels' units."""
        backbone = network.encoder.backbone
        for task in network.tasks:
            if task.kind.head == "transformers" and task.kind.units != (1.0, 0.0) and task.module is not None:
                served_folder.in_units(task.module, *task.kind.units)
        return _without_lora(backbone) if self.train.sharing == "lora" else backbone


class FolderExamples(Examples):
    """Rows as tensors."""

    def __init__(self, subject: TrainedFolder, rows: StoredRows, device: str) -> None:
        self._subject, self._rows, self._device = subject, rows, device

    def places(self) -> list[Place]:
        return [(stream, number) for stream, rows in enumerate(self._rows.streams) for number in range(len(rows))]

    def lengths(self, places: Sequence[Place]) -> list[int]:
        return self._rows.sizes(places)

    def batch(self, places: Sequence[Place]) -> dict[str, torch.Tensor]:
        return self._tensors(self._read(places))

    def _read(self, places: Sequence[Place]) -> list[ReadRow]:
        return [self._subject.read_columns(columns, origin) for origin, columns in self._rows.at(places)]

    def _tensors(self, rows: Sequence[ReadRow]) -> dict[str, torch.Tensor]:
        arguments, of = self._subject.collate(rows)
        found = {f"{INPUT}{name}": array for name, array in arguments.items()}
        for kind in self._subject.kinds:
            own = [row.targets[kind.name] for row in rows if kind.name in row.targets]
            wanted = of[kind.name].astype(np.int64).reshape(-1, kind.width)
            found[f"{OF}{kind.name}"] = wanted if own else np.zeros((1, kind.width), dtype=np.int64)
            found[f"{TO}{kind.name}"] = _joined(own or [kind.blank])
            found[f"{COUNTS}{kind.name}"] = np.full(len(found[f"{TO}{kind.name}"]), float(bool(own)), dtype=np.float32)
        return {name: torch.from_numpy(array).to(self._device) for name, array in found.items()}

    def judged(self, network: Any, places: Sequence[Place]) -> list[Judged]:
        rows = self._read(places)
        return self._subject.judged(network, rows, self._tensors(rows))


def _joined(targets: Sequence[Array]) -> Array:
    """Concatenate targets. Tokens are padded with a target that has no loss."""
    if targets[0].ndim < 2 or len({own.shape[1] for own in targets}) == 1:
        return np.concatenate(targets)
    longest = max(own.shape[1] for own in targets)
    return np.concatenate([np.pad(own, ((0, 0), (0, longest - own.shape[1])), constant_values=-100) for own in targets])


def _new_head(auto: str, folder: Path) -> Any:
    """Return a head of transformers with random weights, without its backbone."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    module = getattr(transformers, auto).from_config(config, dtype=torch.float32)
    setattr(module, module.base_model_prefix, replay())
    return module


def _add_lora(backbone: Any, rank: int) -> None:
    if find_spec("peft") is None:
        raise ConfigurationError("train.sharing: \"lora\" needs peft; pip install 'argosy[train]'")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear")
    inject_adapter_in_model(config, backbone)


def _without_lora(backbone: Any) -> Any:
    """Add the low-rank matrices to the weights, and take their layers away."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(backbone.get_submodule(parent), last, layer.get_base_layer())
    return backbone
