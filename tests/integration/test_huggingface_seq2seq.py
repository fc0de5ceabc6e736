"""Models that make texts of texts: what plain `generate` makes of each text alone, whoever shares the batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producers.wire.errors import ConfigurationError, InputTooLarge
from tests import tiny_checkpoints as tiny
from tests.serving import Served, answered

Made = Callable[..., Path]

TEXTS = [
    "the team won the cup final",
    "it was a dull film",
    "shares fell yesterday and the bank told us that profit is not good !",
]

#: Random weights like to repeat themselves: this brings some variety into what they write.
VARIED = {"max_new_tokens": 12, "no_repeat_ngram_size": 2}


def written(folder: Path, text: str, **settings: Any) -> dict[str, str]:
    """What transformers writes for one text; it no longer has pipelines for these kinds."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    encoded = tokenizer(text, return_tensors="pt")
    encoded.pop("token_type_ids", None)
    [made] = network.generate(**encoded, do_sample=False, **settings)
    return {"text": tokenizer.decode(made, skip_special_tokens=True)}


@pytest.mark.parametrize(
    "more",
    [{}, {"num_beams": 3, "length_penalty": 0.5, "min_new_tokens": 6}, {"min_new_tokens": 6}],
    ids=["greedy", "beams", "longer"],
)
@pytest.mark.parametrize("maker", [tiny.t5, tiny.bart])
def test_texts_are_those_of_plain_transformers(made: Made, maker: Callable[..., Path], more: dict[str, Any]) -> None:
    """Together and alone."""
    folder = made(maker, *(["BartForConditionalGeneration"] if maker is tiny.bart else []))
    served = Served(folder, {"short": "summarization"}).load()
    expected = [written(folder, text, **VARIED, **more) for text in TEXTS]
    assert served.ask("short", TEXTS, **VARIED, **more) == expected
    assert [served.ask("short", [text], **VARIED, **more)[0] for text in TEXTS] == expected
    assert len({one["text"] for one in expected}) > 1
    assert all(one["text"] for one in expected)


def test_each_task_has_its_prefix_and_each_item_its_parameters(made: Made) -> None:
    """One batch: two tasks on a text, and texts with other lengths asked for."""
    folder = made(tiny.t5)
    prefix = {"french": "the new film : ", "short": "us said "}
    served = Served(folder, {"french": "translation", "short": "summarization"}, prefix=prefix).load()

    def own(task: str, **chosen: Any) -> Any:
        return served.catalogue.check_params(served.task(task), chosen, field="params")

    items = [
        (TEXTS[0], {"french": own("french", **VARIED), "short": own("short", **VARIED)}),
        (TEXTS[1], {"french": own("french", **VARIED | {"max_new_tokens": 3})}),
        (TEXTS[2], {"short": own("short", **VARIED)}),
    ]
    found = answered(served.model, items)
    assert found[0]["french"] == written(folder, prefix["french"] + TEXTS[0], **VARIED)
    assert found[0]["short"] == written(folder, prefix["short"] + TEXTS[0], **VARIED)
    assert found[1] == {"french": written(folder, prefix["french"] + TEXTS[1], **VARIED | {"max_new_tokens": 3})}
    assert found[2] == {"short": written(folder, prefix["short"] + TEXTS[2], **VARIED)}


def test_what_a_checkpoint_leaves_open_ends_at_the_models_most(made: Made) -> None:
    """transformers itself would stop after 20 tokens, in the middle of a sentence."""
    folder = made(tiny.t5)
    served = Served(folder, {"short": "summarization"}, max_new_tokens=24).load()
    assert served.ask("short", TEXTS[:1]) == [written(folder, TEXTS[0], max_new_tokens=24)]
    assert "over 24" in str(served.refusal("short", TEXTS[0], max_new_tokens=25))


def test_a_length_that_a_checkpoint_states_is_kept(made: Made, tmp_path: Path) -> None:
    """Also 20, which transformers takes for a length that is not set."""
    folder = tmp_path / "own"
    shutil.copytree(made(tiny.t5), folder)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_length": 20}))
    for options in ({}, {"max_new_tokens": 19}, {"max_new_tokens": 256}):
        served = Served(folder, {"short": "summarization"}, **options).load()
        expected = written(folder, TEXTS[0])
        assert served.ask("short", TEXTS[:1]) == [expected]
        assert expected != written(folder, TEXTS[0], max_new_tokens=40)


@pytest.mark.parametrize("stated", ["max_length", "max_new_tokens"])
def test_the_option_limits_a_longer_length_of_the_checkpoint(made: Made, tmp_path: Path, stated: str) -> None:
    folder = tmp_path / "own"
    shutil.copytree(made(tiny.t5), folder)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {stated: 40}))
    served = Served(folder, {"short": "summarization"}, max_new_tokens=8).load()
    expected = written(folder, TEXTS[0], max_new_tokens=8)
    assert served.ask("short", TEXTS[:1]) == [expected]
    assert expected != written(folder, TEXTS[0])
    assert served.ask("short", TEXTS[:1], max_new_tokens=4) == [written(folder, TEXTS[0], max_new_tokens=4)]


def test_what_cannot_be_read_is_refused(made: Made) -> None:
    served = Served(made(tiny.t5), {"short": "summarization"}, prefix={"short": "said : "})
    assert isinstance(served.refusal("short", "the film " * 40), InputTooLarge)
    assert served.refusal("short", " ").field == "input"
    with pytest.raises(ConfigurationError, match="is not an encoder-decoder"):
        Served(made(tiny.bert, "BertModel"), {"short": "summarization"}).load()


@pytest.fixture(scope="module")
def of_many_languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART whose texts begin with a language and end with </s>, as those of NLLB and mBART-50 do."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("many")
    size = tiny.byte_level(folder, max_tokens=128)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ["deu_Latn", "eng_Latn", "fra_Latn"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    marks = [(name, tokenizer.token_to_id(name)) for name in ("eng_Latn", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single="eng_Latn $A </s>", special_tokens=marks)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )
    fast.save_pretrained(folder)
    torch.manual_seed(3)
    end, pad = (tokenizer.token_to_id(mark) for mark in ("</s>", "<pad>"))
    config = transformers.BartConfig(
        vocab_size=size + len(names), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128,
        eos_token_id=end, pad_token_id=pad, bos_token_id=0, decoder_start_token_id=end, forced_eos_token_id=None,
    )  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_languages_are_what_a_text_begins_with_and_what_is_written_first(of_many_languages: Path) -> None:
    """One batch from and into several; each is what plain `generate` makes with those tokens, alone."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    served = Served(of_many_languages, {"into": "translation"}).load()
    tokenizer = AutoTokenizer.from_pretrained(of_many_languages)
    network = AutoModelForSeq2SeqLM.from_pretrained(of_many_languages).eval()
    ways = [("eng_Latn", "fra_Latn"), ("deu_Latn", "fra_Latn"), ("fra_Latn", "deu_Latn")]
    items, expected = [], []
    for (source, target), text in zip(ways, TEXTS, strict=True):
        asked = {"src_lang": source, "tgt_lang": target, "max_new_tokens": 8, "no_repeat_ngram_size": 2}
        own = {"into": served.catalogue.check_params(served.task("into"), asked, field="params")}
        items.append((served.content("into", text), own))
        encoded = tokenizer(text, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        assert tokenizer.convert_ids_to_tokens(int(encoded["input_ids"][0, 0])) == "eng_Latn"
        encoded["input_ids"][0, 0] = tokenizer.convert_tokens_to_ids(source)
        first = tokenizer.convert_tokens_to_ids(target)
        [made] = network.generate(
            **encoded, do_sample=False, max_new_tokens=8, no_repeat_ngram_size=2, forced_bos_token_id=first
        )
        expected.append({"text": tokenizer.decode(made, skip_special_tokens=True)})
    assert [one["into"] for one in answered(served.model, items)] == expected


def test_a_language_that_the_model_lacks_is_refused(of_many_languages: Path, made: Made) -> None:
    served = Served(of_many_languages, {"into": "translation"}).load()
    error = served.refusal("into", TEXTS[0], tgt_lang="xyz")
    assert (error.field, "deu_Latn" in str(error)) == ("params.tgt_lang", True)
    assert served.refusal("into", TEXTS[0], src_lang="</s>").field == "params.src_lang"
    one_pair = Served(made(tiny.t5), {"into": "translation"}).load()
    assert one_pair.refusal("into", TEXTS[0], tgt_lang="fra_Latn").field == "params.tgt_lang"
