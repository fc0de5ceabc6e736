"""The interface that models are written against: four methods, defaults for the rest, and the previous form for one
release.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from msgspec import Meta
from PIL import Image

from producers.wire import forms
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds import KINDS
from workers.models.built_in.vision.vision_model import VisionModel
from workers.models.interface import options
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Params, Prepared, digest
from workers.models.interface.options import COUNT, Count, Options, Table


def spec(kinds: Mapping[str, str] | None = None, **given: Any) -> ModelSpec:
    models = {"own": {"tasks": dict(kinds or {"long": "text-classification"})}}
    return ModelSpec("own", Path(), "1", Catalogue({}).with_models(models, where="fleet.toml").tasks, given)


class Lengths(Model):
    """A whole class: what it does not write has a default."""

    def prepare(self, content: Any, params: Params) -> Prepared:
        if not content:
            raise InvalidInput("input", "is empty")
        arrays = {"letters": np.frombuffer(content.encode(), dtype=np.uint8), "count": np.array(len(content))}
        return Prepared(arrays, len(content), digest(arrays), aside=content)

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return {"letters": int(output[0]), "of": prepared.aside}

    def load(self, device: str) -> None:
        """Nothing to load."""

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        return {task: arrays["count"][rows][:, None] for task, rows in wanted.items()}


def answers(model: Any, contents: Sequence[str]) -> list[Any]:
    """What the fleet does with items that want all tasks of a model, whose answers it returns row by row."""
    params = {name: task.kind.params() for name, task in model.spec.tasks.items()}
    rows = model.prepare_many(contents, [params] * len(contents))
    outputs = model.forward(model.collate(rows), {name: np.arange(len(rows)) for name in params})
    found = [
        model.finish_many(model.spec.tasks[name], outputs[name], [own] * len(rows), rows)
        for name, own in params.items()
    ]
    return [list(row) for row in zip(*found, strict=True)]


def test_four_methods_are_a_model() -> None:
    """Whoever brings a model writes these; without one of them, the class says which."""
    assert answers(Lengths(spec()), ["a", "four"]) == [[{"letters": 1, "of": "a"}], [{"letters": 4, "of": "four"}]]
    unwritten = type("Unwritten", (Model,), {})
    with pytest.raises(TypeError, match=r"finish'?, '?forward'?, '?load'?, '?prepare"):
        unwritten(spec())


def test_many_are_prepared_one_by_one_unless_the_class_says_otherwise() -> None:
    """An item that is refused takes no neighbour with it, and no result moves."""
    first, refused, last = Lengths(spec()).prepare_many(["one", "", "three"], [{}, {}, {}])
    assert isinstance(refused, InvalidInput)
    assert [row.size for row in (first, last) if isinstance(row, Prepared)] == [3, 5]


def test_many_are_finished_one_by_one_unless_the_class_says_otherwise() -> None:
    model = Lengths(spec())
    row = model.prepare("one", {})
    outputs: list[Any] = [np.array([3]), None]
    right, wrong = model.finish_many(model.spec.tasks["long"], outputs, [msgspec.Struct()] * 2, [row, row])
    assert right == {"letters": 3, "of": "one"}
    assert isinstance(wrong, TypeError)


def test_rows_are_stacked_and_shorter_ones_filled_with_zeros() -> None:
    model = Lengths(spec())
    batch = model.collate([model.prepare(text, {}) for text in ("ab", "a")])
    assert batch["letters"].tolist() == [[97, 98], [97, 0]]
    assert batch["count"].tolist() == [2, 1]


# --- samples and kinds ----------------------------------------------------------------------------

#: Kinds whose inputs only the model knows, and those whose prompt stands in the task's own settings.
_OWN = {
    "tabular-classification",
    "regression",
    "custom",
    "time-series-classification",
    "prompted-classification",
    "prompted-json",
}


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - _OWN))
def test_samples_are_inputs_of_the_tasks_kind(kind: str) -> None:
    """A class that says nothing is tried on what its tasks read: each sample passes the client's own check."""
    samples = Lengths(spec({"task": kind})).samples(4)
    assert len(samples) >= 2
    for content, params in samples:
        assert set(params) == {"task"}
        if isinstance(content, bytes):
            _open(KINDS[kind].modality, content)
        else:
            forms.check(KINDS[kind].modality, content, forms.Limits(), "input")


def _open(modality: str, content: bytes) -> None:
    if modality == "audio":
        with wave.open(io.BytesIO(content)) as file:
            assert file.getnframes()
    else:
        assert Image.open(io.BytesIO(content)).format in ("PNG", "GIF")


def test_samples_of_several_forms_come_in_turns() -> None:
    """What sets itself up at its first run does so among the first few."""
    samples = Lengths(spec({"a": "text-classification", "b": "question-answering", "c": "feature-extraction"})).samples(
        6
    )
    assert [set(params) for _, params in samples[:2]] == [{"a", "c"}, {"b"}]
    assert len(samples) == 6


def test_what_only_the_model_knows_has_no_samples() -> None:
    with pytest.raises(NotImplementedError, match="'row'; override `samples` in the model's class"):
        Lengths(spec({"risk": "tabular-classification"})).samples(4)


def test_a_class_of_one_kind_refuses_others() -> None:
    class Images(Lengths):
        kind = KINDS["image-classification"]

    assert Images(spec({"shows": "image-classification"})).kind is not None
    with pytest.raises(ConfigurationError, match=r"own\.tasks\.says: is of the kind text-classification, but Images"):
        Images(spec({"says": "text-classification"}))


# --- options --------------------------------------------------------------------------------------


class LengthsOptions(Options, frozen=True):
    most: Count = 10
    least: Annotated[int, Meta(ge=0)] = 0
    names: Table = msgspec.field(default_factory=dict)


class Optioned(Lengths):
    options_class = LengthsOptions
    options: LengthsOptions


def test_options_are_read_as_attributes() -> None:
    assert Optioned(spec(most=3)).options == LengthsOptions(most=3)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"mots": 3}, "mots: not an option; the options are: least, most, names"),
        ({"most": 0}, "most: must be a whole number, 1 or more, not 0"),
        ({"least": -1}, "least: must be `int` >= 0, not -1"),
        ({"least": "few"}, "least: must be `int`, not 'few'"),
        ({"names": {"a": 1}}, "names: must be a table of names and texts, not {'a': 1}"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], problem: str) -> None:
    """Also those whose annotation has no description."""
    with pytest.raises(ConfigurationError) as caught:
        Optioned(spec(**given))
    assert str(caught.value) == f"models.own.options.{problem}"


def test_an_option_without_a_default_must_be_given() -> None:
    class Needed(Options, frozen=True):
        folder: options.Text

    with pytest.raises(ConfigurationError, match=r"models\.m\.options\.folder: is missing; it must be a text"):
        options.decode(Needed, {}, where="models.m")


def test_a_class_without_options_takes_any() -> None:
    assert Lengths(spec(any=[1])).spec.options == {"any": [1]}


# --- the previous form, for one release -----------------------------------------------------------


def test_finish_without_the_row_works_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match=r"Previous: finish\(self, task, output, params\) is now finish\(") as warned:

        class Previous(Lengths):
            def finish(self, task: Task, output: Array, params: msgspec.Struct) -> Any:  # type: ignore[override]
                return {"letters": int(output[0])}

    assert warned[0].filename == __file__, "the warning names the class's own file"
    assert answers(Previous(spec()), ["four"]) == [[{"letters": 4}]]


def test_finish_item_works_with_a_warning() -> None:
    """It is asked for each item, and may ask the class's own `finish`, or its base's `finish_item`, for some tasks."""
    with pytest.warns(FutureWarning, match="finish_item is now finish"):

        class Previous(Model):
            def prepare(self, content: Any, params: Params) -> Prepared:
                return Lengths.prepare(self, content, params)  # type: ignore[arg-type]

            def finish(self, task: Task, output: Array, params: msgspec.Struct) -> Any:  # type: ignore[override]
                return {"letters": int(output[0])}

            def finish_item(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
                if task.name == "long":
                    return {**self.finish(task, output, params), "of": prepared.aside}  # type: ignore[call-arg]
                return super().finish_item(task, output, params, prepared)

            def load(self, device: str) -> None:
                """Nothing to load."""

            def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
                return Lengths.forward(self, arrays, wanted)  # type: ignore[arg-type]

    kinds = {"long": "text-classification", "bare": "text-classification"}
    assert answers(Previous(spec(kinds)), ["four"]) == [[{"letters": 4, "of": "four"}, {"letters": 4}]]


def test_the_previous_name_of_finish_may_be_called() -> None:
    """Programs of their own that evaluate a model call what it is called in their code."""
    model = Lengths(spec())
    row = model.prepare("one", {})
    with pytest.warns(FutureWarning, match="finish_item is now finish"):
        answer = model.finish_item(model.spec.tasks["long"], np.array([3]), None, row)
    assert answer == {"letters": 3, "of": "one"}


def test_trial_works_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match=r"trial\(self, count\) is now samples\(self, count\)"):

        class Previous(Lengths):
            def trial(self, count: int) -> Sequence[Any]:
                return [("text", {})] * count

    assert Previous(spec()).samples(3) == [("text", {})] * 3


def test_a_table_of_options_works_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="OPTIONS is now options_class, a msgspec.Struct"):

        class Previous(Lengths):
            OPTIONS = {"top": COUNT}  # noqa: RUF012 - as it was written

    assert Previous(spec(top=3)).spec.options["top"] == 3
    with pytest.raises(ConfigurationError, match=r"models\.own\.options\.tpo: not an option; the options are: top$"):
        Previous(spec(tpo=3))
    with pytest.raises(ConfigurationError, match=r"options\.top: must be a whole number, 1 or more, not 0$"):
        Previous(spec(top=0))


def test_a_table_of_options_adds_to_those_of_a_built_in_model() -> None:
    with pytest.warns(FutureWarning, match="OPTIONS is now options_class"):

        class Previous(VisionModel):
            OPTIONS = {**VisionModel.OPTIONS, "top": COUNT}  # noqa: RUF012 - as it was written

    model = Previous(spec({"shows": "image-classification"}, top=3, max_image_pixels=1000))
    assert model.options.max_image_pixels == 1000
    with pytest.raises(ConfigurationError, match=r"max_image_pixels: must be a whole number, 1 or more, not 'all'$"):
        Previous(spec({"shows": "image-classification"}, max_image_pixels="all"))
