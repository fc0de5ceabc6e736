"""Train a model of sensor measurements: ``python -m workers.training.train_series OUT [--jsonl FILE]``.

Without a file, the data are BasicMotions (80 recordings of ten seconds from a smart watch: standing, walking, running,
badminton), half of which are held out, as by their authors. A file has lines of ``{"series": …, "label": …}``, with the
series as the task takes it; a fifth of each label is held out. The printed scores, also written beside the model, are
of the held-out part. `argosy train` takes the place of ``--jsonl`` (docs/training.md).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from producers.wire.catalogue import KINDS, Catalogue, Task
from producers.wire.command_line import one_line_errors, say
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.messages import SeriesInput
from workers.models.built_in.tables.series import SeriesChannel, SeriesDescription, save
from workers.models.built_in.tables.series_network import SeriesNetwork
from workers.models.sources import model_source
from workers.training import data
from workers.training.data import SEED
from workers.training.kinds.labelled_kind import deviation
from workers.training.recipes import labelled_rows

_EPOCHS = 250
_LEARNING_RATE = 3e-3

#: Training also uses parts of the recordings, down to this share of their length; the served model accepts equally
#: short ones.
_SHORTEST = 0.4
_LONGEST = 4

#: The channels of BasicMotions, in the order of its files.
WATCH = ("acceleration_x", "acceleration_y", "acceleration_z", "rotation_x", "rotation_y", "rotation_z")

_TASK = Task("own", KINDS["time-series-classification"], "own", "what a file's series are read as")

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recordings:
    """Series `(steps, channels)` with their labels; the held-out part is not trained on."""

    name: str
    channels: tuple[str, ...]
    known: list[tuple[Values, str]]
    held_out: list[tuple[Values, str]]


class SeriesScore(msgspec.Struct, frozen=True):
    """The score on the held-out part. `plain` is a logistic regression's accuracy, on the channels' means and
    deviations.
    """

    recordings: int
    accuracy: float
    majority: float
    plain: float


def basic_motions(cache: Path) -> Recordings:
    """Return BasicMotions, after pulling it into `cache` if needed."""
    folder = data.pull("motions", cache)
    known, held_out = (read_ts(folder / f"BasicMotions_{part}.ts") for part in ("TRAIN", "TEST"))
    return Recordings("BasicMotions", WATCH, known, held_out)


def read_ts(path: Path) -> list[tuple[Values, str]]:
    """Return the cases of a file in the format of the UEA archive: channels separated by colons, the label last."""
    lines = path.read_text("utf-8").splitlines()
    cases = lines[[line.strip().lower() for line in lines].index("@data") + 1 :]
    found = []
    for case in filter(None, cases):
        *channels, label = case.split(":")
        found.append((np.array([one.split(",") for one in channels], dtype=np.float64).T, label.strip().lower()))
    return found


def read_jsonl(path: Path) -> Recordings:
    """Return a file's series, a fifth of each label held out. Raises ConfigurationError naming the line."""
    names: set[tuple[str, ...]] = set()
    by_label: dict[str, list[Values]] = {}
    for origin, row in _rows(path):
        try:
            read = Catalogue({}).check_input(_TASK, row["series"], field="series")
            label = str(row["label"])
        except (KeyError, InvalidInput) as error:
            says = f"has no {error}" if isinstance(error, KeyError) else error
            raise ConfigurationError(f'{origin}: {says}; each line needs {{"series": …, "label": …}}') from error
        assert isinstance(read, SeriesInput)
        names.add(read.names or tuple(map(str, range(len(read.channels)))))
        if len(names) > 1 or any(value is None for one in read.channels for value in one):
            raise ConfigurationError(f"{origin}: needs the channels of the first line, and all values")
        by_label.setdefault(label, []).append(np.array(read.channels, dtype=np.float64).T)
    if len(by_label) < 2 or min(map(len, by_label.values())) < 5:
        raise ConfigurationError(f"{path}: needs two labels or more, and five series of each")
    order = np.random.default_rng(SEED)
    known, held_out = [], []
    for label, series in sorted(by_label.items()):
        places = order.permutation(len(series))
        held = set(places[: max(1, len(series) // 5)].tolist())
        known += [(one, label) for n, one in enumerate(series) if n not in held]
        held_out += [(one, label) for n, one in enumerate(series) if n in held]
    return Recordings(path.stem, names.pop(), known, held_out)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        for origin, row in labelled_rows.plain_rows([str(path)], "jsonl"):
            if isinstance(row, InvalidInput):
                raise row
            yield origin, row
    except InvalidInput as error:
        raise ConfigurationError(str(error)) from error


def train(recordings: Recordings, out: Path, *, epochs: int = _EPOCHS) -> SeriesScore:
    """Write the model of some recordings to the folder `out`, and return its score on the held-out part."""
    labels = tuple(sorted({label for _, label in recordings.known}))
    described = SeriesDescription(_channels(recordings), labels, _steps(recordings))
    network = fit(recordings, described, epochs)
    score = _score(network, recordings, described)
    about = {"trained_on": f"{recordings.name}, {len(recordings.known)} series"}
    save(network.state_dict(), described, out, held_out=msgspec.to_builtins(score), **about)
    return score


def fit(recordings: Recordings, described: SeriesDescription, epochs: int) -> SeriesNetwork:
    """Train on random parts of the recordings, with changed loudness and added noise."""
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    network = SeriesNetwork(len(described.channels), len(described.labels))
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs)
    series = [_standard(values, described) for values, _ in recordings.known]
    wanted = torch.tensor([described.labels.index(label) for _, label in recordings.known])
    for _ in range(epochs):
        network.train()
        parts = [_part(values, random) for values in series]
        loss = torch.nn.functional.cross_entropy(network(*_padded(parts)), wanted, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def _part(values: Values, random: np.random.Generator) -> Values:
    length = int(random.integers(int(_SHORTEST * len(values)), len(values) + 1))
    start = int(random.integers(0, len(values) - length + 1))
    loudness = random.uniform(0.8, 1.25, (1, values.shape[1]))
    part: Values = values[start : start + length] * loudness + random.normal(0, 0.05, (length, values.shape[1]))
    return part


def _channels(recordings: Recordings) -> tuple[SeriesChannel, ...]:
    together = np.concatenate([values for values, _ in recordings.known])
    return tuple(
        SeriesChannel(name, float(own.mean()), deviation(own))
        for name, own in zip(recordings.channels, together.T, strict=True)
    )


def _steps(recordings: Recordings) -> tuple[int, int]:
    lengths = [len(values) for values, _ in recordings.known]
    return max(1, int(_SHORTEST * min(lengths))), _LONGEST * max(lengths)


def _standard(values: Values, described: SeriesDescription) -> Values:
    means = np.array([channel.mean for channel in described.channels])
    scales = np.array([channel.scale for channel in described.channels])
    standard: Values = (values - means) / scales
    return standard


def _padded(series: Sequence[Values]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(values) for values in series])
    tensors = [torch.tensor(values, dtype=torch.float32) for values in series]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def _score(network: SeriesNetwork, recordings: Recordings, described: SeriesDescription) -> SeriesScore:
    wanted = [label for _, label in recordings.held_out]
    with torch.inference_mode():
        scores = network(*_padded([_standard(values, described) for values, _ in recordings.held_out]))
    found = [described.labels[place] for place in scores.argmax(-1).tolist()]
    return SeriesScore(
        recordings=len(wanted),
        accuracy=float(np.mean([one == other for one, other in zip(found, wanted, strict=True)])),
        majority=max(Counter(wanted).values()) / len(wanted),
        plain=_plain(recordings, described),
    )


def _plain(recordings: Recordings, described: SeriesDescription) -> float:
    """Return the accuracy of a model that ignores order: channels' means and deviations alone."""
    from sklearn.linear_model import LogisticRegression

    def summary(cases: Sequence[tuple[Values, str]]) -> Values:
        standard = [_standard(values, described) for values, _ in cases]
        return np.array([np.concatenate([one.mean(axis=0), one.std(axis=0)]) for one in standard])

    fitted = LogisticRegression(max_iter=5000).fit(summary(recordings.known), [label for _, label in recordings.known])
    return float(fitted.score(summary(recordings.held_out), [label for _, label in recordings.held_out]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model's folder: the `source` of a model in fleet.toml")
    parser.add_argument("--jsonl", type=Path, help="series with their labels; BasicMotions without it")
    asked = parser.parse_args()
    if asked.jsonl:
        say(f"train_series --jsonl goes away: argosy train RECIPE, kind = {_TASK.kind.name!r}", err=True)
    recordings = read_jsonl(asked.jsonl) if asked.jsonl else basic_motions(model_source.cache_folder())
    score = train(recordings, asked.out)
    Console().print(
        f"{recordings.name}: {score.accuracy:.1%} of {score.recordings} held-out series "
        f"(majority {score.majority:.1%}, means and "
        f"deviations alone {score.plain:.1%}); in {asked.out}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
