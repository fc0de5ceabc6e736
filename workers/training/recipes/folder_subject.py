"""The subject of a recipe: rows as the worker's model reads them, and a backbone with a head for each task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint import Checkpoint, loading
from workers.models.huggingface.checkpoint_networks import read_network, replay
from workers.models.huggingface.text.task_attention import TaskAttention
from workers.models.interface.model import Array, Arrays
from workers.training.kinds.labelled_kind import LabelledKind, Pair, padded
from workers.training.kinds.shared_network import COUNTS, INPUT, OF, TO, Backbone, SharedNetwork, TaskNetwork
from workers.training.loop.recipe import Recipe
from workers.training.loop.schedule import Place
from workers.training.loop.training_subject import Examples, Part, TrainingSubject
from workers.training.recipes import served_folder, stored_rows
from workers.training.recipes.labelled_rows import BadRows, LabelledRow
from workers.training.recipes.recipe_file import TrainTable
from workers.training.recipes.stored_rows import StoredRows
from workers.training.splits.layouts import NetworkShape

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

    #: The settings of the recipe's table `train` that only some forms of input have, and this form has.
    settings: ClassVar[tuple[str, ...]] = ("backbone", "sharing", "lora_rank", "max_tokens")

    #: The tasks of the network.
    task_network: ClassVar[type[TaskNetwork]] = TaskNetwork

    #: The backbone of a recipe without one, if there is one.
    usual_backbone: ClassVar[str] = "text"

    #: Whether the backbone itself writes the answers.
    writes: ClassVar[bool] = False

    #: Whether the network begins with a backbone's weights.
    has_backbone: ClassVar[bool] = True

    #: The class of the served model, unless its tasks' kinds choose it.
    served_class: ClassVar[str] = ""

    def __init__(
        self, backbone: Path, out: Path, train: TrainTable, tasks: Sequence[LabelledKind], rows: Mapping[Part, Any]
    ) -> None:
        """`rows` are the labelled rows of each part, which are written to files: every process decodes its own.

        Raises BadRows for a row that the worker would refuse.
        """
        self.backbone, self.out, self.train, self.kinds = backbone, out, train, tasks
        self.begin(rows)
        folder = out / served_folder.ROWS
        self.parts: Mapping[Part, StoredRows] = {
            part: stored_rows.write(folder / f"{part}.arrow", own, self._sizes(own)) for part, own in rows.items()
        }

    def begin(self, rows: Mapping[Part, Sequence[LabelledRow]]) -> None:
        """Write the folder without weights. Raises ConfigurationError for a backbone that these kinds do not train."""
        checkpoint = Checkpoint(self.backbone, "train.backbone")
        checkpoint.check_weights()
        self.check_backbone(checkpoint)
        served_folder.write_settings(self.out, self.backbone, self.kinds)

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

    def read_input(self, row: LabelledRow, kinds: Sequence[LabelledKind], content: Any) -> ReadRow:
        """Return a row whose tasks all read one input; the data for `finish` are the prepared input."""
        prepared = self.model.prepare(content, {kind.name: kind.params for kind in kinds})
        targets = {kind.name: kind.targets(row.labels[kind.name], None) for kind in kinds}
        asides = dict.fromkeys(targets, prepared)
        return ReadRow(prepared.arrays, prepared.size, dict.fromkeys(targets, 1), targets, asides, row.labels)

    def places(self, rows: Sequence[ReadRow]) -> Arrays:
        """Return the places of each task's rows, where every row is one input."""
        return {
            task: np.array([n for n, row in enumerate(rows) if task in row.targets], np.int64) for task in self.tasks
        }

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
        return [kind.progress(pairs) for kind, pairs in zip(self.kinds, self._pairs(judged), strict=True)]

    def all_scores(self, judged: Sequence[Sequence[Judged]]) -> list[dict[str, float]]:
        """Return each task's scores from answers and labels."""
        return [kind.scores(pairs) for kind, pairs in zip(self.kinds, self._pairs(judged), strict=True)]

    def settle(self, network: SharedNetwork, judged: Sequence[Sequence[Judged]]) -> None:
        """Let tasks choose by the answers to the validation part, and let their heads answer by that."""
        for kind, pairs, task in zip(self.kinds, self._pairs(judged), network.tasks, strict=True):
            kind.settle(pairs)
            if kind.head == "attention":
                _set_units(task.module, kind)

    def _pairs(self, judged: Sequence[Sequence[Judged]]) -> list[list[Pair]]:
        found: list[list[Pair]] = [[] for _ in self.kinds]
        for task, answer, label in (one for part in judged for one in part):
            found[task].append((answer, label))
        return found

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
            for row in rows:
                if kind.name in row.labels:
                    end = start + row.inputs[kind.name]
                    answer = self.answer(kind, outputs[start:end], row.asides[kind.name])
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
        BadRows.raise_for(bad)
        return found

    # --- the network ---

    @classmethod
    def shape_of(cls, backbone: Path, train: TrainTable) -> NetworkShape:
        """Return the facts by which a split is refused."""
        return NetworkShape.of(backbone, train.sharing, writes=cls.writes)

    @property
    def shape(self) -> NetworkShape:
        return self.shape_of(self.backbone, self.train)

    def build(self, recipe: Recipe) -> SharedNetwork:
        for kind in self.kinds:
            if kind.settles:
                kind.units = LabelledKind.units  # those of another training
        with loading(self.backbone, "train.backbone"):
            return self._build(recipe)

    def load(self) -> tuple[Any, Sequence[str]]:
        """Return the backbone, and the names of weights that its folder lacks."""
        backbone, report = read_network(self.auto, self.backbone, "train.backbone", torch.float32)
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
        tasks = [self.task_network(kind, self.model.heads[kind.name], modules[kind.name]) for kind in self.kinds]
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
            _set_units(module, kind)
            return _begun(module, module.out, kind)
        if kind.head == "transformers":
            head = self.model.heads[kind.name]
            module = _new_head(head.auto, head.checkpoint.folder)
            return _begun(module, served_folder.last_layer(module), kind)
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

    def answer(self, kind: LabelledKind, outputs: Array, aside: Any) -> Any:
        """Return the worker's answer for a row, by the values of its inputs `(inputs, …)`."""
        return self.model.heads[kind.name].finish(outputs, kind.params, aside)

    def calibrate(self, network: SharedNetwork) -> None:
        """Change the best weights before they are judged and written."""

    def write(self, network: SharedNetwork) -> None:
        """Write a trained network's weights for the worker."""
        served_folder.write_weights(self.out, self.merged(network), network.tasks)

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
    return padded([row for own in targets for row in own])


def _begun(module: Any, last: nn.Linear, kind: LabelledKind) -> Any:
    """Let a new head begin with the scores that are known from the labels alone."""
    if kind.first_scores and last.bias is not None:
        with torch.no_grad():
            last.bias.copy_(torch.tensor(kind.first_scores))
    return module


def _set_units(module: Any, kind: LabelledKind) -> None:
    module.scale.fill_(kind.units[0])
    module.shift.fill_(kind.units[1])


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
