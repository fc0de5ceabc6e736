"""Options of models: what is misspelt, or has a value of no use, is named when the worker starts, by every class
alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.wire.errors import ConfigurationError
from workers import settings
from workers.batching.serving import served_models
from workers.device.device_process import ModelToLoad
from workers.models.huggingface import CLASSES
from workers.models.interface import class_lookup, options
from workers.models.interface.model import Model

#: Every class that the built-in models and the kinds have, but the functions that choose one by the folder.
OURS = {chosen.class_ for chosen in settings.load(None).models.values()} | {*CLASSES.values()}
OURS -= {"workers.models.huggingface:model_for", "workers.models.speech.recogniser:recogniser"}
OURS |= {
    "workers.models.speech.whisper:WhisperModel",
    "workers.models.speech.ctc:CtcModel",
    "workers.models.built_in.tables.tabular:TabularModel",
}


def build(class_: str, **options: Any) -> Model:
    return served_models.build(ModelToLoad(class_, "own", "/nowhere", "1", {}, options))


@pytest.mark.parametrize("class_", sorted(OURS))
def test_an_unknown_option_is_refused_with_those_that_exist(class_: str) -> None:
    """A misspelt limit would leave the model without one, and nobody would know."""
    known = class_lookup.find(class_).options_class.__struct_fields__
    listed = f"the options are: {', '.join(sorted(known))}" if known else "the model has no options"
    with pytest.raises(ConfigurationError, match=rf"^models\.own\.options\.max_tokns: not an option; {listed}$"):
        build(class_, max_tokns=3)


@pytest.mark.parametrize("class_", sorted(OURS))
def test_a_value_of_no_use_is_refused(class_: str) -> None:
    """Whatever an option is, it is no list; found when the first item comes, it would fail them all."""
    for field in msgspec.structs.fields(class_lookup.find(class_).options_class):
        assert options.described(field.type), f"{field.name} does not say what it must be"
        with pytest.raises(ConfigurationError) as caught:
            build(class_, **{field.name: ["x"]})
        must_be = options.described(field.type)
        assert str(caught.value) == f"models.own.options.{field.name}: must be {must_be}, not ['x']"


@pytest.mark.parametrize(
    ("class_", "option", "value"),
    [
        ("workers.models.huggingface.text.seq2seq:Seq2SeqModel", "max_new_tokens", "many"),
        ("workers.models.huggingface.text.seq2seq:Seq2SeqModel", "max_new_tokens", 0),
        ("workers.models.built_in.vision.vision_model:VisionModel", "max_image_pixels", 2.5),
        ("workers.models.built_in.vision.vision_model:VisionModel", "feature_cache_mib", -1),
        ("workers.models.built_in.vision.detector:DetectorModel", "max_image_pixels", True),
        ("workers.models.built_in.video.video_model:VideoModel", "max_video_s", float("nan")),
    ],
)
def test_what_is_no_such_number_is_refused(class_: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^models\.own\.options\.{option}: must be a .*number.*, not "):
        build(class_, **{option: value})


def test_a_class_of_somebodys_own_takes_what_it_reads() -> None:
    """It says nothing of its options, so nothing is known to be wrong."""
    model = build("tests.scripted_model:ScriptedModel", fail_to_load="raise", more=1)
    assert model.spec.options["more"] == 1


def test_the_parts_of_a_fused_model_get_the_options_that_are_theirs() -> None:
    """One table for two models: each would refuse what is the other's."""
    uses = {"text": "/nowhere/text", "vision": "/nowhere/vision"}
    model: Any = build(
        "workers.models.built_in.fused.fused_model:FusedModel", uses=uses, max_tokens=64, max_image_pixels=1000
    )
    assert model._text_part.spec.options == {"max_tokens": 64}
    assert model._image_part.spec.options == {"max_image_pixels": 1000}
    assert model._text_part.spec.folder == Path("/nowhere/text")
