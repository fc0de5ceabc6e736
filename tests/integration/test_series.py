"""What sensors measured: trained, served, and what is wrong with a series named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InputTooLarge
from tests.serving import TOLERANCE, Served, assert_alike
from workers import settings
from workers.models.built_in.tables.series import FILE, SeriesModel
from workers.models.built_in.tables.series_network import SeriesNetwork
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source
from workers.training import train_series as training

TASKS = {"motion": "time-series-classification"}


class ServedSeries(Served):
    """As a fleet serves it: by class and folder."""

    def __init__(self, folder: Path) -> None:
        self.catalogue = Catalogue({}).with_models({"own": {"tasks": TASKS}}, where="fleet.toml")
        self.model: Any = SeriesModel(ModelSpec("own", folder, "1", self.catalogue.tasks, {}))


@pytest.fixture(scope="module")
def served() -> ServedSeries:
    """The model that comes with Argosy."""
    source = model_source.parse(settings.load(environment={}).models["motion"].source, where="motion")
    found = model_source.locate(source, model_source.cache_folder())
    assert found is not None
    motion = ServedSeries(found.folder)
    motion.load()
    return motion


@pytest.fixture(scope="module")
def recordings() -> training.Recordings:
    return training.basic_motions(model_source.cache_folder())


def lists(values: Any) -> list[list[float]]:
    """A recording as somebody sends it: channel by channel."""
    found: list[list[float]] = np.asarray(values).T.tolist()
    return found


def test_it_knows_what_it_has_not_seen(served: ServedSeries, recordings: training.Recordings) -> None:
    """The recordings that were held out, through the code that serves: the score that the card states."""
    answers = served.ask("motion", [lists(values) for values, _ in recordings.held_out])
    right = sum(answer[0]["label"] == label for answer, (_, label) in zip(answers, recordings.held_out, strict=True))
    assert len(recordings.held_out) == 40
    assert right >= 38


def test_short_and_long_series_are_as_well_known(served: ServedSeries, recordings: training.Recordings) -> None:
    """Four seconds out of the middle, and half a minute: nobody moves for exactly ten seconds."""
    for cut in (lambda values: values[30:70], lambda values: np.concatenate([values] * 3)):
        answers = served.ask("motion", [lists(cut(values)) for values, _ in recordings.held_out])
        right = sum(one[0]["label"] == label for one, (_, label) in zip(answers, recordings.held_out, strict=True))
        assert right >= 37


def test_neighbours_do_not_change_an_answer(served: ServedSeries, recordings: training.Recordings) -> None:
    """Series of very different lengths in one batch: padding is not read, in neither direction."""
    random = np.random.default_rng(0)
    whole = [values for values, _ in recordings.held_out[:12]]
    inputs = [lists(values[: random.integers(40, 101)]) for values in whole]
    alone = [served.ask("motion", [one], top_k=None)[0] for one in inputs]
    for _ in range(3):
        order = random.permutation(len(inputs))[: random.integers(2, len(inputs) + 1)]
        together = served.ask("motion", [inputs[n] for n in order], top_k=None)
        assert_alike(together, [alone[n] for n in order])


def test_the_answer_is_that_of_the_network_by_itself(served: ServedSeries, recordings: training.Recordings) -> None:
    """Batched and served, against the weights applied by hand to one series."""
    from safetensors.torch import load_file

    tensors = load_file(served.model.spec.folder / FILE)
    network = SeriesNetwork.of_shape(tensors)
    network.load_state_dict(tensors)
    network.eval()
    answers = served.ask("motion", [lists(values) for values, _ in recordings.held_out[:8]], top_k=None)
    for answer, (values, _) in zip(answers, recordings.held_out, strict=False):
        padded = training._padded([training._standard(values, served.model.described)])
        scores = dict(
            zip(served.model.described.labels, network(*padded).softmax(-1)[0].detach().tolist(), strict=True)
        )
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(scores, abs=TOLERANCE)


def test_channels_may_be_named_in_any_order(served: ServedSeries, recordings: training.Recordings) -> None:
    """A table of columns is the same series."""
    channels = lists(recordings.held_out[0][0])
    named = dict(zip(training.WATCH, channels, strict=True))
    assert served.ask("motion", [dict(reversed(named.items()))]) == served.ask("motion", [channels])


def test_a_few_missing_values_are_filled(served: ServedSeries, recordings: training.Recordings) -> None:
    """In a straight line, at the ends with the nearest; more than a fifth of a channel is another series than was
    measured.
    """
    line = np.tile(np.linspace(0, 1, 50)[:, None], (1, 6))
    gaps: Any = lists(line)
    gaps[2][7:12] = [None] * 5
    prepared = [
        served.model.prepare(served.content("motion", one), {"motion": served.task("motion").kind.params()})
        for one in (lists(line), gaps)
    ]
    np.testing.assert_allclose(prepared[0].arrays["series"], prepared[1].arrays["series"], atol=1e-6)
    gaps[2][20:30] = [float("nan")] * 10
    refused = served.refusal("motion", gaps)
    assert refused.field == "input.acceleration_z"
    assert "lacks 15 of 50 values, over 20%" in str(refused)


@pytest.mark.parametrize(
    ("value", "field", "problem"),
    [
        ([[0.0] * 50] * 5, "input", "has 5 channels, not 6"),
        ([[0.0] * 39] * 6, "input", "has 39 values a channel, under 40"),
        ([[0.0] * 401] * 6, "input", "has 401 values a channel, over 400"),
        ({"pulse": [0.0] * 50}, "input.pulse", "is not a channel of the model"),
        ({"rotation_x": [0.0] * 50}, "input.acceleration_x", "is missing"),
        ([[0.0] * 50] * 5 + [[0.0] * 49], "input.5", "has 49 values, and channel 0 has 50"),
    ],
)
def test_a_wrong_series_is_told_what_is_wrong(served: ServedSeries, value: Any, field: str, problem: str) -> None:
    refused = served.refusal("motion", value)
    assert refused.field == field
    assert problem in str(refused)
    assert isinstance(refused, InputTooLarge) is ("over 400" in problem)


def test_series_of_ones_own(tmp_path: Path) -> None:
    """A file of labelled series is all it takes: two waves, told apart by their pace, which no mean or deviation
    shows.
    """
    random = np.random.default_rng(0)
    with (tmp_path / "waves.jsonl").open("w", encoding="utf-8") as file:
        for number in range(60):
            pace, phase = (0.2, 0.8)[number % 2], random.uniform(0, 6)
            wave = np.sin(np.arange(40) * pace + phase) + random.normal(0, 0.1, 40)
            file.write(json.dumps({"series": {"height": wave.tolist()}, "label": ("slow", "fast")[number % 2]}) + "\n")
    score = training.train(training.read_jsonl(tmp_path / "waves.jsonl"), tmp_path / "model", epochs=40)
    assert score.recordings == 12
    assert score.accuracy >= 0.9 > score.plain
    own = ServedSeries(tmp_path / "model")
    own.load()
    [answer] = own.ask("motion", [{"height": np.sin(np.arange(30) * 0.8).tolist()}])
    assert answer[0]["label"] == "fast"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"series": [1, 2]}\n', "own.jsonl:1: has no 'label'; each line needs"),
        ('{"series": [1, 2], "label": "a"}\n{"series": [[1], [2]], "label": "a"}\n', "own.jsonl:2: needs the channels"),
        ('{"series": [1, null], "label": "a"}\n', "own.jsonl:1: needs .* all values"),
        ('{"series": [1, 2], "label": "a"}\n' * 9, "needs two labels"),
        ("no json\n", "own.jsonl:1: is not JSON: "),
    ],
)
def test_a_file_that_teaches_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        training.read_jsonl(tmp_path / "own.jsonl")


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    """At the start of a worker."""
    with pytest.raises(ConfigurationError, match="train it again"):
        _ = ServedSeries(tmp_path).model.revision


def test_outputs_are_of_their_kinds_type(served: ServedSeries, recordings: training.Recordings) -> None:
    answer = served.ask("motion", [lists(recordings.held_out[0][0])], top_k=None)[0]
    msgspec.convert(answer, served.task("motion").kind.output)
    assert sum(one["score"] for one in answer) == pytest.approx(1, abs=1e-5)
