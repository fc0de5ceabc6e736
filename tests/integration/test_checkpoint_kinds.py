"""Folders as people have them: kinds of tokenizers, settings and texts that once failed or were answered otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.checkpoint_folders import references, texts, tokenizers, writing
from benchmarks.checkpoint_folders.folders import Case
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.integration.test_huggingface_vision import FILES, PICTURES
from tests.integration.test_speech import CLIPS, GREEDY, MOST, SPEECH
from tests.integration.test_speech import FILES as SOUNDS
from tests.serving import Served, assert_alike, pipeline
from workers.models.huggingface import tokenizer_file
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.network_calls import rows_of
from workers.models.huggingface.sentencepiece_tokenizers import converted
from workers.models.huggingface.tokenizing import PROBES
from workers.models.speech.whisper import LANGUAGES

Made = Callable[..., Path]

CASES = {case.name: case for case in (*writing.cases(), *texts.cases())}

TEXTS = ["shares fell in london", "a film", "she said that it was not good and he told us where"]


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("name", ["marian-translates", "m2m100-translates"])
def test_a_tokenizer_of_sentencepiece_without_a_fast_version(tmp_path: Path, name: str) -> None:
    """Marian numbers the pieces of two models by one vocabulary; M2M-100 has its languages behind it."""
    CASES[name].make(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = converted(theirs)
    for text in [*PROBES, *tokenizers.texts()[:50], " one", "a </s> b", "x  y "]:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text).ids) == theirs.decode(
            theirs(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True
        )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_marian_translates(tmp_path: Path) -> None:
    case: Case = CASES["marian-translates"]
    case.make(tmp_path)
    expected = references.of(case, tmp_path)
    tokenizer_file.keep(Checkpoint(tmp_path, "models.own"), transformers.AutoTokenizer.from_pretrained(tmp_path))
    served = Served(tmp_path, {"task": "translation"}).load()
    assert served.ask("task", TEXTS, **case.params) == [expected(text) for text in TEXTS]


def test_masks_where_the_network_does_not_call_its_projection(tmp_path: Path) -> None:
    """MobileBERT multiplies by the weights themselves."""
    case = CASES["mobilebert-mlm"]
    case.make(tmp_path)
    expected, served = references.of(case, tmp_path), Served(tmp_path, {"task": "fill-mask"}).load()
    for text in ("the [MASK] was not good", "he told us that she said it is not [MASK] in london"):
        assert_alike(served.ask("task", [text])[0], expected(text).ranked[:5])


def test_a_network_that_attends_in_chunks_is_found_out(tmp_path: Path) -> None:
    """Padding changes Reformer's answers to texts of several chunks only."""
    CASES["reformer-cls"].make(tmp_path)
    assert Served(tmp_path, {"task": "text-classification"}).load().model.equal_lengths


def test_texts_with_end_tokens_share_a_pass_with_their_like(made: Made) -> None:
    """BART takes no batch whose rows have their end token unequally often."""
    folder = made(tiny.bart, "BartForSequenceClassification", num_labels=3)
    served = Served(folder, {"mood": "text-classification"}).load()
    texts = ["a film", "a </s> b", "the team </s>", "one </s> two </s> three"]
    assert_alike(served.ask("mood", texts, top_k=None), pipeline("text-classification", folder)(texts, top_k=None))


def test_a_decoder_without_a_padding_token_reads_the_last_position(tmp_path: Path) -> None:
    """Also in batches, and where a text ends with the token that is often taken for padding."""
    size = tiny.byte_level(tmp_path)
    settings = transformers.GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=2, num_labels=3, bos_token_id=2, eos_token_id=2
    )
    torch.manual_seed(0)
    tiny._spread(transformers.GPT2ForSequenceClassification(settings)).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    served = Served(tmp_path, {"mood": "text-classification"}).load()
    theirs = pipeline("text-classification", tmp_path)
    assert tokenizer("a</s>")["input_ids"][-1] == 2
    texts = ["a film", "a film</s>", "shares fell in london, she said", "dull"]
    assert_alike(served.ask("mood", texts, top_k=None), [theirs(text, top_k=None) for text in texts])


def test_token_types_are_given_where_transformers_gives_them(made: Made) -> None:
    """Its tokenizer decides: one that gives none leaves a network's second type unused, also for pairs."""
    nli: dict[str, Any] = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
    nli["label2id"] = {label: number for number, label in nli["id2label"].items()}
    folder = made(tiny.bert, "BertForSequenceClassification", **nli)
    untyped = folder.with_name("untyped")
    tiny.bert(untyped, "BertForSequenceClassification", **nli)
    file = untyped / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}))
    for place in (folder, untyped):
        served = Served(place, {"about": "zero-shot-classification"}).load()
        theirs = pipeline("zero-shot-classification", place)(TEXTS[0], candidate_labels=["a", "b"])
        [found] = served.ask("about", TEXTS[:1], candidate_labels=["a", "b"])
        assert_alike([one["score"] for one in found], theirs["scores"])


def test_image_settings_in_the_processors_file(made: Made, tmp_path: Path) -> None:
    """Processors of several inputs save no file of images alone."""
    folder = tiny.vit(tmp_path / "vit", num_labels=3)
    own = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(own.read_text())}))
    expected = pipeline("image-classification", folder)(PICTURES)
    own.unlink()
    assert_alike(Served(folder, {"shows": "image-classification"}).load().ask("shows", FILES), expected)


def test_a_tensor_of_layers_keeps_them() -> None:
    """A detector's output has tensors whose first axis is not that of the images."""
    output = {"logits": torch.arange(3), "layers": torch.arange(2), "of_layers": (torch.arange(6).view(3, 2),)}
    found = rows_of(output, torch.tensor([2, 0]), 3)
    assert found["logits"].tolist() == [2, 0]
    assert found["layers"].tolist() == [0, 1]
    assert found["of_layers"][0].tolist() == [[4, 5], [0, 1]]


def test_whisper_has_transformers_names_of_languages() -> None:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    assert LANGUAGES == TO_LANGUAGE_CODE


@pytest.mark.filterwarnings("ignore")
def test_whisper_obeys_its_generation_config(tmp_path: Path) -> None:
    """Language and task in the form of today and in the earlier one."""
    folder = tiny.whisper(tmp_path / "whisper", multilingual=True)
    file = folder / "generation_config.json"
    told = json.loads(file.read_text())
    french, translate = told["lang_to_id"]["<|fr|>"], told["task_to_id"]["translate"]
    said = []
    for own in ({"language": "<|fr|>", "task": "translate"}, {"forced_decoder_ids": [[1, french], [2, translate]]}):
        file.write_text(json.dumps(told | own))
        theirs = pipeline(SPEECH, folder)
        once = GREEDY | {"force_unique_generate_call": True}
        said.append(Served(folder, {"said": SPEECH}, max_new_tokens=MOST).load().ask("said", SOUNDS[:2]))
        assert_alike(said[-1], [theirs(clip.copy(), generate_kwargs=once) for clip in CLIPS[:2]])
    assert said[0] == said[1]
    for name, value in {"no_repeat_ngram_size": 3, "return_timestamps": True}.items():
        file.write_text(json.dumps(told | {name: value}))
        with pytest.raises(ConfigurationError, match=f"the checkpoint sets {name} = {value}, which is not served"):
            _ = Served(folder, {"said": SPEECH}).model.revision


@pytest.mark.parametrize("kind", ["image-to-text", "text-to-speech", "text-ranking", "mask-generation"])
def test_a_kind_of_transformers_that_is_not_served_is_said_as_it_is(kind: str) -> None:
    """The most similar name would be another kind."""
    with pytest.raises(ConfigurationError, match=f"Argosy has no models for '{kind}'; write a class of your own"):
        Catalogue({}).with_models({"own": {"tasks": {"task": kind}}}, where="fleet.toml")
