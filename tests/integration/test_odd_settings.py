"""Folders with odd but legal settings answer as transformers does, and folders that lack a part are refused by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks.checkpoint_folders import comparison, inputs, references, settings, texts
from producers.wire.errors import ConfigurationError
from tests.serving import Served

CASES = {case.name: case for case in settings.cases()}

REFUSED = {
    "llama-no-head-writes": r"has no weights for lm_head\.weight: the checkpoint was not trained",
    "llama-no-layer-writes": r"has no weights for model\.layers\.1\.mlp\.down_proj\.weight, …",
    "llama-gptq-writes": r"are quantised \(quantize_config\.json\), .*; name the folder of the model before",
    "llama-prefixed-writes": r"it has module\.lm_head\.weight instead; save the network without the prefix 'module\.'",
    "bert-lost-shard-cls": r"names model-\d+-of-\d+\.safetensors, which is not in .*; pull it again",
    "bert-other-tokenizer-cls": r"has a tokenizer with the number \d+, and a network of 300 tokens .*own tokenizer",
    "bert-other-name-cls": r"only pytorch_model\.safetensors, whose name .*; load it with transformers and save it",
}


@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys()))
def test_an_odd_setting_is_obeyed(tmp_path: Path, name: str) -> None:
    """Alone and together."""
    case, folder = CASES[name], tmp_path / name
    case.make(folder)
    given = inputs.of(case.kind, folder, 5)
    answer, served = references.of(case, folder), Served(folder, {"task": case.kind}).load()
    expected = [answer(one) for one in given]
    alone = [served.ask("task", [one], **case.params)[0] for one in given]
    for found in (alone, served.ask("task", given, **case.params)):
        for one, theirs in zip(found, expected, strict=True):
            assert comparison.difference(case.kind, one, theirs, comparison.MARGINS["torch-fp32"]) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path, name: str) -> None:
    """Its weights were drawn at random, or the remedy was of no use."""
    CASES[name].make(tmp_path / name)
    with pytest.raises(ConfigurationError, match=REFUSED[name]):
        Served(tmp_path / name, {"task": CASES[name].kind}).load()


def test_settings_of_onnx_files_are_none_of_the_weights(tmp_path: Path) -> None:
    """transformers.js writes them beside the network that it converts."""
    texts.make(tmp_path / "network", row=texts.CLASSIFIERS[0], auto="AutoModelForSequenceClassification")
    told = {"per_channel": False, "reduce_range": False, "per_model_config": {"model": {"op_types": ["MatMul"]}}}
    settings.changed_json(tmp_path / "network", name="quantize_config.json", values=told)
    _ = Served(tmp_path / "network", {"task": "text-classification"}).model.revision


def test_a_decoder_is_not_given_a_text_that_turns_by_other_angles(tmp_path: Path) -> None:
    """A long neighbour changed the answers of all; a long text read its first pieces as those of a short one."""
    row = settings.long_rope(64)
    texts.make(tmp_path / "network", row=row, auto="AutoModelForCausalLM")
    served = Served(tmp_path / "network", {"task": "text-generation"}).load()
    refusal = served.refusal("task", "the film was dull " * 20)
    assert refusal.field == "input"
    assert "over 64" in str(refusal)


def test_a_decoder_whose_texts_are_cleaned_up_is_refused(tmp_path: Path) -> None:
    """Parts of the text are streamed before the spaces behind them are known."""
    texts.make(tmp_path / "network", row=("xglm", "XLMRoberta", {"attention_heads": 4}), auto="AutoModelForCausalLM")
    cleaned = partial(settings.changed_json, name="tokenizer_config.json")
    cleaned(tmp_path / "network", values={"clean_up_tokenization_spaces": True})
    with pytest.raises(ConfigurationError, match=r"clean_up_tokenization_spaces = true is not served.*set it to false"):
        Served(tmp_path / "network", {"task": "text-generation"}).load()
