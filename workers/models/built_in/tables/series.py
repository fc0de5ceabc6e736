"""Classify series of sensor values at equal intervals, of any length, with a small recurrent network.

`argosy train` writes one safetensors file; the metadata hold the channels and the heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import SeriesInput
from workers.models.built_in.described_file import read_described, write_described
from workers.models.built_in.tables import described_heads
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Prepared, digest
from workers.models.interface.options import Options

FILE = "series.safetensors"
FORMAT = "argosy-series/2"

#: The format of a model of one head, by `workers.training.train_series`.
ONE_HEAD_FORMAT = "argosy-series/1"

#: The share of a channel that may be missing; gaps are interpolated linearly.
MOST_MISSING = 0.2


class SeriesChannel(msgspec.Struct, frozen=True):
    """A channel of the training data, with the mean and scale of its values."""

    name: str
    mean: float
    scale: float


class SeriesDescription(msgspec.Struct, frozen=True):
    """The metadata of a model's file. `steps` are the fewest and the most values of a channel.

    `labels` are those of a model of one head, which has no `heads`.
    """

    channels: tuple[SeriesChannel, ...]
    labels: tuple[str, ...]
    steps: tuple[int, int]
    heads: described_heads.Heads = {}

    @property
    def every(self) -> described_heads.Heads:
        """The heads, by task."""
        return self.heads or {described_heads.EVERY: described_heads.HeadDescription(self.labels)}


class SeriesModel(Model):
    """A model whose inputs are series (`producers.wire.messages.SeriesInput`). All its tasks share a pass."""

    options_class = Options
    default_cost = 16_384

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._network: Any = None
        self._modules: dict[str, Any] = {}
        self._device = "cpu"

    # --- in the parent process ---

    @property
    def revision(self) -> str:
        described_heads.check(self.spec, self.described.every)  # when the worker starts
        return super().revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Order, fill and standardise the channels.

        The row has `series`, float32 `(steps, channels)`, and its `lengths`, int64 `()`.
        """
        if not isinstance(content, SeriesInput):
            raise InvalidInput("input", "must be lists of numbers, one for each channel", "see `argosy tasks`")
        ordered = self._ordered(content)
        self._check_steps(len(ordered[0]))
        filled = [
            self._filled(values, channel) for values, channel in zip(ordered, self.described.channels, strict=True)
        ]
        steps = len(ordered[0])
        arrays: Arrays = {
            "series": np.stack(filled, axis=1).astype(np.float32),
            "lengths": np.array(steps, dtype=np.int64),
        }
        return Prepared(arrays, steps, digest(arrays))

    def _ordered(self, content: SeriesInput) -> Sequence[Sequence[float | None]]:
        """Return the channels in the order of the training data: by name if they are named, else as given."""
        names = [channel.name for channel in self.described.channels]
        if content.names:
            given = dict(zip(content.names, content.channels, strict=True))
            if unknown := sorted(set(given) - set(names)):
                problem = "is not a channel of the model"
                raise InvalidInput(f"input.{unknown[0]}", problem, f"channels: {', '.join(names)}")
            if missing := [name for name in names if name not in given]:
                raise InvalidInput(f"input.{missing[0]}", "is missing", f"channels: {', '.join(names)}")
            return [given[name] for name in names]
        if len(content.channels) != len(names):
            problem = f"has {len(content.channels)} channels, not {len(names)}"
            raise InvalidInput("input", problem, f"a list for each of {', '.join(names)}")
        return content.channels

    def _check_steps(self, steps: int) -> None:
        least, most = self.described.steps
        if steps < least:
            raise InvalidInput("input", f"has {steps} values a channel, under {least}", "measure for longer")
        if steps > most:
            raise InputTooLarge("input", f"has {steps:,} values a channel, over {most:,}", "send it in parts")

    def _filled(self, values: Sequence[float | None], channel: SeriesChannel) -> Array:
        array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        missing = np.isnan(array)
        if missing.mean() > MOST_MISSING:
            problem = f"lacks {missing.sum():,} of {len(array):,} values, over {MOST_MISSING:.0%}"
            raise InvalidInput(f"input.{channel.name}", problem, "leave the item out")
        places = np.arange(len(array))
        whole = np.interp(places, places[~missing], array[~missing])
        return np.asarray((whole - channel.mean) / channel.scale)

    def finish(self, task: Task, output: Array, params: Any, prepared: Prepared) -> Any:
        """Return the best labels of a head's values `(labels,)`."""
        return described_heads.answer(task, self.described.every, output, params.top_k)

    def declared_schemas(self) -> dict[str, Any]:
        values = {"type": "array", "items": {"type": ["number", "null"]}}
        channels = {channel.name: values for channel in self.described.channels}
        return {"input": {"type": "object", "properties": channels, "required": [*channels]}}

    @cached_property
    def described(self) -> SeriesDescription:
        """The metadata of the model's file. Raises ConfigurationError."""

        def decode(metadata: Mapping[str, str]) -> SeriesDescription:
            return msgspec.json.decode(metadata["described"], type=SeriesDescription)

        forms = (FORMAT, ONE_HEAD_FORMAT)
        return read_described(self.spec.folder / FILE, forms, decode, where=f"models.{self.spec.name}: ")

    # --- in the device process ---

    def load(self, device: str) -> None:
        from safetensors.torch import load_file

        from workers.models.built_in.tables.series_network import SeriesReader

        self._device = device
        tensors = load_file(self.spec.folder / FILE)
        head = f"{described_heads.HEAD}{described_heads.EVERY}."
        tensors = {
            name.replace("out.", head) if name.startswith("out.") else name: own for name, own in tensors.items()
        }
        self._network = SeriesReader.of_tensors(tensors).eval().to(device)
        heads = described_heads.load(tensors, self.described.every)
        self._modules = {name: module.eval().to(device) for name, module in heads.items()}

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        series = torch.from_numpy(arrays["series"].copy()).to(self._device)
        lengths = torch.from_numpy(arrays["lengths"].copy())
        with torch.inference_mode():
            return described_heads.run(self._modules, self._network(series, lengths), wanted)


def save(tensors: Mapping[str, Any], described: SeriesDescription, folder: Path, **about: object) -> None:
    """Write tensors of torch with their description; `about` adds further fields."""
    metadata = {
        "format": FORMAT if described.heads else ONE_HEAD_FORMAT,
        "described": msgspec.json.encode(described).decode(),
    }
    write_described(folder / FILE, tensors, metadata | {name: json.dumps(value) for name, value in about.items()})
