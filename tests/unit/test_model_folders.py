"""A model folder and a request's parameters ask for no more than any model has; else they are refused by name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.generation import PromptedClassificationParams, PromptedJsonParams, TextGenerationParams
from producers.wire.kinds.pictures import TextToImageParams
from producers.wire.kinds.text import FillMaskParams, QuestionAnsweringParams
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.tokenizing import Tokenizing

MANY = {str(number): f"label {number}" for number in range(100_001)}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": 1e300}, "num_hidden_layers"),
        ({"n_layer": 10**6}, "n_layer"),
        ({"text_config": {"decoder_layers": 10**6}}, "text_config.decoder_layers"),
        ({"num_labels": 10**6}, "num_labels"),
        ({"id2label": MANY}, "id2label"),
        ({"vision_config": {"a": {"label2id": MANY}}}, "vision_config.a.label2id"),
    ],
)
def test_a_folder_that_asks_for_too_much_is_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    """A million layers would be built for minutes, in all of the memory."""
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigurationError, match=rf"models\.x: .*config\.json: {named} is over"):
        _ = Checkpoint(tmp_path, "models.x").labels


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        '{"a": ' * 100_000,
        '{"a": ' * 100_000 + "1" + "}" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        "\udcff",
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"models\.x: .*config\.json"):
        _ = Checkpoint(tmp_path, "models.x").config


@pytest.mark.parametrize(
    "settings", [{"num_labels": "x"}, {"id2label": {"x": "y"}}, {"id2label": 5}, {"num_labels": []}]
)
def test_labels_without_numbers_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigurationError, match="labels have no numbers"):
        _ = Checkpoint(tmp_path, "models.x").labels


def test_a_table_for_each_layer_is_not_many_layers(tmp_path: Path) -> None:
    """Gemma 3n has one."""
    (tmp_path / "config.json").write_text('{"vocab_size_per_layer_input": 262144, "model_type": "gemma3n"}')
    assert Checkpoint(tmp_path, "models.x").config


#: Architectures whose code has the function for other networks than the one that reads texts alone.
OTHERS = {"altclip", "bridgetower", "clap", "evolla", "kosmos2", "kosmos2_5", "m2m_100", "nllb_moe", "pp_doclayout_v2"}
OTHERS |= {"seamless_m4t", "seamless_m4t_v2", "speech_to_text", "speecht5", "trocr"}


def test_positions_that_are_counted_from_the_padding_are_fewer(tmp_path: Path) -> None:
    """A text of 513 tokens passed, and had no position."""
    found = find_spec("transformers")
    assert found is not None
    assert found.origin
    sources = Path(found.origin).parent.glob("models/*/modeling_*.py")
    counted = {
        file.parent.name for file in sources if "def create_position_ids_from_input_ids" in file.read_text("utf-8")
    }
    assert "roberta" in counted
    for name in counted - OTHERS - {"data2vec"} | {"data2vec-text"}:
        settings = {"model_type": name.replace("_", "-"), "max_position_embeddings": 514, "pad_token_id": 1}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert Checkpoint(tmp_path, "models.x").max_tokens == 512, name


def first(kind: str) -> str:
    """Return a modules.json that begins with a module."""
    return json.dumps([{"path": "0_Transformer", "type": kind}])


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"adapter_config.json": "{}"}, "is an adapter without its base model; name the base as the source"),
        ({"model_index.json": "{}"}, "is a pipeline of diffusers; give it a task of the kind"),
        ({"model.onnx": ""}, "has no config.json, only an ONNX model; name the file in the source"),
        ({"modules.json": first("sentence_transformers.models.Transformer")}, "has its network in 0_Transformer"),
        ({"modules.json": first("sentence_transformers.models.StaticEmbedding")}, "begins with the module StaticEmb"),
        ({"modules.json": first("custom_st.Transformer")}, r"begins with the module custom_st\.Transformer"),
        ({"modules.json": "[]"}, "config.json: .*pull it"),
        ({}, "config.json: .*pull it"),
    ],
)
def test_a_folder_without_a_config_is_told_what_it_is(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    """A missing file's name leads nowhere."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        _ = Checkpoint(tmp_path, "models.x").config


def test_a_huge_settings_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ConfigurationError, match="over 64 MiB"):
        _ = Checkpoint(tmp_path, "models.x").config


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"properties": value}
    return value


PROMPT = "Say {input}"


@pytest.mark.parametrize(
    ("form", "given", "named"),
    [
        (PromptedJsonParams, {"prompt": PROMPT, "schema": nested(100)}, "schema"),
        (PromptedJsonParams, {"prompt": PROMPT, "schema": {"enum": ["x" * 100] * 1000}}, "schema"),
        (PromptedJsonParams, {"prompt": PROMPT, "schema": {"pattern": "(a{1,9}){1,9}" * 10_000}}, "schema"),
        (
            PromptedJsonParams,
            {"prompt": PROMPT, "schema": {"allOf": [{"pattern": f".{{{n}}}"} for n in range(9)]}},
            "schema",
        ),
        (PromptedJsonParams, {"prompt": PROMPT + "x" * 100_000, "schema": {}}, "prompt"),
        (PromptedClassificationParams, {"prompt": PROMPT, "labels": ["x" * 3000, "y"]}, "labels"),
        (TextGenerationParams, {"max_new_tokens": 2**63}, "max_new_tokens"),
        (TextGenerationParams, {"top_k": 2**63}, "top_k"),
        (TextGenerationParams, {"stop": ["x" * 1000]}, "stop"),
        (TextGenerationParams, {"stop": ["x"] * 1000}, "stop"),
        (FillMaskParams, {"top_k": 10**6}, "top_k"),
        (QuestionAnsweringParams, {"top_k": 10**6}, "top_k"),
        (TextToImageParams, {"negative_prompt": "x" * 100_001}, "negative_prompt"),
    ],
)
def test_huge_parameters_are_refused(form: Any, given: dict[str, Any], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"`{named}`"):
        msgspec.convert(given, form)


@pytest.mark.parametrize("levels", [0, 25])
def test_a_usual_schema_is_taken(levels: int) -> None:
    assert msgspec.convert({"prompt": PROMPT, "schema": nested(levels)}, PromptedJsonParams).schema == nested(levels)


def test_a_regular_expression_that_takes_for_ever_is_refused(tmp_path: Path) -> None:
    """The library of the tokenizer gives up after ten million steps, by a panic, which is no Exception."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "?": 1}, merges=[], unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    tokenizing = Tokenizing(Checkpoint(tmp_path, "models.x"))
    with pytest.raises(InvalidInput, match="cannot be tokenised"):
        tokenizing.encode("a" * 50 + "!")
    with pytest.raises(InvalidInput, match="cannot be tokenised"):
        tokenizing.cut("a" * 50 + "!", None, 10)
    assert tokenizing.bare("aa") == [0, 0]


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ' * 10_000)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Tokenizing(Checkpoint(tmp_path, "models.x")).encode("a")
