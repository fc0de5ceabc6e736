"""Any Hugging Face text model by its folder and kinds alone: the answers of plain transformers, whoever shares the
batch.

The checkpoints are tiny, of real architectures, made here (`tests/tiny_checkpoints.py`); `tests.serving.TOLERANCE` is
what padding and another order of sums may change of a score.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext as nothing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from tests import tiny_checkpoints as tiny
from tests.serving import TOLERANCE, Served, answered, assert_alike, pipeline
from workers.models.backends.choice import Backend
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.token_sequences import plan
from workers.models.huggingface.tokenizing import Tokenizing

pytestmark = pytest.mark.usefixtures("two_threads")

TEXTS = [
    "the team won the cup final",
    "it was a dull film",
    "shares fell yesterday and the bank told us that profit is not good !",
    "\U0001f600 \U0001f600",
    "angela merkel lives in berlin and she works for apple",
]

#: Over the tiny models' 64 tokens.
LONG = "angela merkel lives in berlin. " * 12

NLI = {"num_labels": 3, "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
NLI |= {"label2id": {"contradiction": 0, "neutral": 1, "entailment": 2}}
NER = {"num_labels": 4, "id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "I-LOC"}}


Made = Callable[..., Path]


# --- the answers of plain transformers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("maker", "head", "config"),
    [
        (tiny.bert, "BertForSequenceClassification", {"num_labels": 3}),
        (tiny.bert, "BertForSequenceClassification", {"num_labels": 4, "problem_type": "multi_label_classification"}),
        (tiny.bert, "BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
        (tiny.distilbert, "DistilBertForSequenceClassification", {"num_labels": 2}),
        (tiny.roberta, "RobertaForSequenceClassification", {"num_labels": 3}),
        (tiny.bart, "BartForSequenceClassification", {"num_labels": 3}),
    ],
    ids=["bert", "several-labels", "regression", "distilbert", "roberta", "bart"],
)
def test_text_classification(made: Made, maker: Callable[..., Path], head: str, config: dict[str, Any]) -> None:
    """One label of several, several at once, a bare number: as the checkpoint's own problem type says."""
    folder = made(maker, head, **config)
    served = Served(folder, {"mood": "text-classification"}).load()
    expected = pipeline("text-classification", folder)(TEXTS, top_k=None)
    assert_alike(served.ask("mood", TEXTS, top_k=None), expected)
    assert_alike(served.ask("mood", TEXTS), [answers[:1] for answers in expected])


@pytest.mark.parametrize("function", ["sigmoid", "softmax", "none"])
def test_scores_are_made_as_the_settings_say(made: Made, function: str) -> None:
    """A checkpoint whose config says nothing, or the wrong thing, about what its labels are."""
    folder = made(tiny.bert, "BertForSequenceClassification", num_labels=3)
    served = Served(folder, {"mood": "text-classification"}, function_to_apply={"mood": function}).load()
    expected = pipeline("text-classification", folder)(TEXTS, top_k=None, function_to_apply=function)
    assert_alike(served.ask("mood", TEXTS, top_k=None), expected)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    ("maker", "head"), [(tiny.bert, "BertForSequenceClassification"), (tiny.bart, "BartForSequenceClassification")]
)
def test_zero_shot_by_inference(made: Made, maker: Callable[..., Path], head: str, multi_label: bool) -> None:
    """Each label is a hypothesis; BART counts its end tokens, so that a batch of pairs must keep them."""
    folder = made(maker, head, **NLI)
    served = Served(folder, {"about": "zero-shot-classification"}).load()
    asked = {"candidate_labels": ["sport", "business", "film"], "multi_label": multi_label}
    theirs = pipeline("zero-shot-classification", folder)(TEXTS, **asked)
    expected = [
        [{"label": label, "score": score} for label, score in zip(one["labels"], one["scores"], strict=True)]
        for one in theirs
    ]
    assert_alike(served.ask("about", TEXTS, **asked), expected)


def test_zero_shot_by_likeness(made: Made) -> None:
    """An encoder that was not trained for inference compares vectors instead: the text's own words win."""
    folder = made(tiny.bert, "BertModel")
    served = Served(folder, {"about": "zero-shot-classification"}).load()
    labels = ["business profit fell", "it was a dull film"]
    for extra in ({}, {"multi_label": True}):
        [answer] = served.ask(
            "about", ["it was a dull film"], candidate_labels=labels, hypothesis_template="{}", **extra
        )
        assert answer[0]["label"] == "it was a dull film"
    assert answer[0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("maker", [tiny.distilbert, tiny.roberta])
def test_token_classification(made: Made, maker: Callable[..., Path], strategy: str) -> None:
    """Words, types and places of entities, by tokens that know where words begin and by bytes that do not."""
    head = {"distilbert": "DistilBertForTokenClassification", "roberta": "RobertaForTokenClassification"}[
        maker.__name__
    ]
    folder = made(maker, head, **NER)
    served = Served(folder, {"entities": "token-classification"}).load()
    with (
        pytest.warns(UserWarning, match="real words")
        if maker is tiny.roberta and strategy in ("first", "average", "max")
        else nothing()
    ):
        expected = pipeline("token-classification", folder, aggregation_strategy=strategy)(TEXTS)
    found = served.ask("entities", TEXTS, aggregation_strategy=strategy)
    assert_alike(found, expected)
    assert sum(map(len, found)) > 3
    for text, entities in zip(TEXTS, found, strict=True):
        for entity in entities:
            assert 0 <= entity["start"] <= entity["end"] <= len(text)


@pytest.mark.parametrize("strategy", ["simple", "first"])
def test_entities_of_a_long_text_come_from_overlapping_windows(made: Made, strategy: str) -> None:
    """None is cut in two, none comes twice, and their places are those in the whole text."""
    folder = made(tiny.distilbert, "DistilBertForTokenClassification", **NER)
    served = Served(folder, {"entities": "token-classification"}).load()
    expected = pipeline("token-classification", folder, aggregation_strategy=strategy, stride=8)(LONG)
    [found, _] = served.ask("entities", [LONG, TEXTS[0]], aggregation_strategy=strategy, stride=8)
    assert_alike(found, expected)
    assert max(entity["end"] for entity in found) > 200
    assert "stride" in str(served.refusal("entities", LONG, stride=62))


def test_question_answering(made: Made) -> None:
    """Scores by brute force over every span; transformers no longer has a pipeline for it."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    folder = made(tiny.distilbert, "DistilBertForQuestionAnswering")
    served = Served(folder, {"answer": "question-answering"}).load()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    question, context = "who works in berlin?", TEXTS[4]
    encoded = tokenizer(question, context, return_tensors="pt")
    with torch.inference_mode():
        output = network(**encoded)
    allowed = torch.tensor([n == 0 or place == 1 for n, place in enumerate(encoded.sequence_ids())])
    starts, ends = (
        logits[0].masked_fill(~allowed, -torch.inf).softmax(-1) for logits in (output.start_logits, output.end_logits)
    )
    spans = {
        (
            encoded.word_to_chars(0, encoded.token_to_word(a), 1)[0],
            encoded.word_to_chars(0, encoded.token_to_word(b), 1)[1],
        ): float(starts[a] * ends[b])
        for a in range(1, len(allowed))
        for b in range(a, min(len(allowed), a + 15))
        if allowed[a] and allowed[b]
    }
    best = sorted(spans.items(), key=lambda pair: -pair[1])[:3]
    [found] = served.ask("answer", [{"question": question, "context": context}], top_k=3)
    assert_alike(found, [{"score": s, "start": a, "end": b, "answer": context[a:b]} for (a, b), s in best])
    [found] = served.ask(
        "answer", [{"question": question, "context": context}], top_k=99, handle_impossible_answer=True
    )
    assert {"score": round(float(starts[0] * ends[0]), 6), "start": 0, "end": 0, "answer": ""} in found


def test_answers_out_of_a_long_context(made: Made) -> None:
    """The context goes in windows behind the question; what is found stands where it says."""
    served = Served(made(tiny.distilbert, "DistilBertForQuestionAnswering"), {"answer": "question-answering"}).load()
    asked = [{"question": "who?", "context": LONG}, {"question": "where is the cup?", "context": TEXTS[0]}]
    [long, short] = served.ask("answer", asked, top_k=5, doc_stride=8)
    assert_alike([long], served.ask("answer", asked[:1], top_k=5, doc_stride=8))
    assert_alike([short], served.ask("answer", asked[1:], top_k=5))
    assert [LONG[one["start"] : one["end"]] for one in long] == [one["answer"] for one in long]
    problem = served.refusal("answer", {"question": "who " * 40, "context": LONG})
    assert problem.field == "input.question"


@pytest.mark.parametrize(
    ("maker", "head", "mask"),
    [(tiny.bert, "BertForMaskedLM", "[MASK]"), (tiny.roberta, "RobertaForMaskedLM", "<mask>")],
)
def test_fill_mask(made: Made, maker: Callable[..., Path], head: str, mask: str) -> None:
    """One mask or several, any token or one of some."""
    folder = made(maker, head)
    served = Served(folder, {"fill": "fill-mask"}).load()
    texts = [f"the {mask} won the cup", f"a {mask} film {mask} !", TEXTS[4] + f" {mask}"]
    theirs = pipeline("fill-mask", folder)
    assert_alike(served.ask("fill", texts, top_k=3), theirs(texts, top_k=3))
    targets = ["a", "t"] if maker is tiny.roberta else ["good", "film"]
    assert_alike(served.ask("fill", texts[:1], targets=targets), [theirs(texts[0], targets=targets)])
    assert mask in str(served.refusal("fill", "no such token"))
    assert "over 16" in str(served.refusal("fill", mask * 17))
    assert "targets" in str(served.refusal("fill", texts[0], targets=["no such token"]))


@pytest.mark.parametrize("maker", [tiny.bert, tiny.roberta])
def test_feature_extraction(made: Made, maker: Callable[..., Path]) -> None:
    """The pipeline's vectors of the tokens, pooled."""
    folder = made(maker, {"bert": "BertModel", "roberta": "RobertaModel"}[maker.__name__])
    theirs = [np.array(found[0], dtype=np.float32) for found in pipeline("feature-extraction", folder)(TEXTS)]
    pooled = {"mean": [v.mean(0) for v in theirs], "cls": [v[0] for v in theirs], "max": [v.max(0) for v in theirs]}
    for pooling, expected in pooled.items():
        served = Served(folder, {"vector": "feature-extraction"}, pooling=pooling).load()
        np.testing.assert_allclose(served.ask("vector", TEXTS, normalize=False), expected, atol=TOLERANCE)
        lengths = np.linalg.norm(served.ask("vector", TEXTS), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_sentence_similarity(made: Made) -> None:
    """The cosines of the vectors that feature extraction gives."""
    folder = made(tiny.bert, "BertModel")
    served = Served(folder, {"vector": "feature-extraction", "alike": "sentence-similarity"}).load()
    asked = [
        {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]},
        {"source_sentence": TEXTS[2], "sentences": [TEXTS[2]]},
    ]
    vectors = np.array(served.ask("vector", TEXTS))
    found = served.ask("alike", asked)
    assert_alike(found[0], [float(one) for one in vectors[1:] @ vectors[0]])
    assert_alike(found[1], [1.0])


# --- who shares a batch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maker", "head", "config", "kind", "params"),
    [
        (tiny.bert, "BertForSequenceClassification", {"num_labels": 3}, "text-classification", {"top_k": None}),
        (tiny.roberta, "RobertaForSequenceClassification", {"num_labels": 3}, "text-classification", {"top_k": None}),
        (tiny.bart, "BartForSequenceClassification", NLI, "zero-shot-classification", {"candidate_labels": ["a", "b"]}),
        (tiny.distilbert, "DistilBertForTokenClassification", NER, "token-classification", {"stride": 4}),
        (tiny.bert, "BertModel", {}, "zero-shot-classification", {"candidate_labels": ["a", "b"]}),
        (tiny.bert, "BertModel", {}, "feature-extraction", {}),
    ],
    ids=["bert", "roberta", "inference", "entities", "likeness", "vectors"],
)
def test_neighbours_do_not_change_an_answer(
    made: Made, maker: Callable[..., Path], head: str, config: dict[str, Any], kind: str, params: dict[str, Any]
) -> None:
    """Alone, with all others, and with random ones: what a text is batched with is chance."""
    served = Served(made(maker, head, **config), {"task": kind}).load()
    texts = [*TEXTS, *([LONG] if kind == "token-classification" else [])]
    alone = [served.ask("task", [text], **params)[0] for text in texts]
    random = np.random.default_rng(0)
    for _ in range(4):
        order = random.permutation(len(texts))[: random.integers(2, len(texts) + 1)]
        for place, answer in zip(order, served.ask("task", [texts[n] for n in order], **params), strict=True):
            if kind == "feature-extraction":
                np.testing.assert_allclose(answer, alone[place], atol=TOLERANCE)
            else:
                assert_alike(answer, alone[place])


def test_tasks_on_one_backbone_share_its_pass(made: Made, tmp_path: Path) -> None:
    """Three heads of three folders, and vectors, of texts that only some of them want: the backbone runs once."""
    import shutil

    from safetensors.torch import load_file, save_file

    main = made(tiny.bert, "BertForSequenceClassification", num_labels=3)
    tagger = tiny.bert(tmp_path / "tagger", "BertForTokenClassification", **NER)
    other = shutil.copytree(main, tmp_path / "other")
    weights = load_file(main / "model.safetensors")
    save_file(
        load_file(tagger / "model.safetensors")
        | {n: w for n, w in weights.items() if n.startswith("bert.") and "pooler" not in n},
        tagger / "model.safetensors",
        {"format": "pt"},
    )
    save_file(
        {n: -w if n.startswith("classifier") else w for n, w in weights.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    tasks = {
        "mood": "text-classification",
        "opposite": "text-classification",
        "entities": "token-classification",
        "vector": "feature-extraction",
    }
    served = Served(main, tasks, heads={"opposite": str(other), "entities": str(tagger)}).load()
    calls: list[int] = []
    served.model.networks._backbone.register_forward_hook(lambda *_: calls.append(1))
    params = {name: served.task(name).kind.params() for name in tasks}
    wanted = [("mood", "vector"), ("opposite",), ("entities", "mood", "opposite", "vector")]
    items = [(text, {name: params[name] for name in names}) for text, names in zip(TEXTS, wanted, strict=False)]
    found = answered(served.model, items)
    assert calls == [1]
    assert_alike(found[2]["mood"], Served(main, {"mood": "text-classification"}).load().ask("mood", [TEXTS[2]])[0])
    assert_alike(
        found[2]["entities"], pipeline("token-classification", tagger, aggregation_strategy="simple")(TEXTS[2])
    )
    assert_alike(found[1]["opposite"], pipeline("text-classification", other)(TEXTS[1]))
    assert served.model.revision.startswith("1+other@")


def test_a_head_of_another_backbone_is_refused(made: Made, tmp_path: Path) -> None:
    """Sharing the pass would give it features that it was not trained on."""
    main = made(tiny.bert, "BertForSequenceClassification", num_labels=3)
    stranger = tiny.bert(tmp_path / "stranger", seed=7, num_labels=3)
    tasks = {"mood": "text-classification", "strange": "text-classification"}
    with pytest.raises(ConfigurationError, match=r"differs from the model's other heads.*separate model"):
        Served(main, tasks, heads={"strange": str(stranger)}).load()


def test_a_head_that_changes_its_backbones_inputs_is_refused_beside_others(tmp_path: Path) -> None:
    """A Longformer classifies with a mask of its own, which a shared backbone would not have; alone it is right."""
    import transformers

    config = transformers.LongformerConfig(
        vocab_size=tiny.wordpiece(tmp_path), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        intermediate_size=48, max_position_embeddings=66, attention_window=8, pad_token_id=0, type_vocab_size=2,
    )  # fmt: skip
    tiny._spread(transformers.LongformerForSequenceClassification(config)).save_pretrained(tmp_path)
    alone = Served(tmp_path, {"mood": "text-classification"}).load()
    expected = pipeline("text-classification", tmp_path)(TEXTS[:1], top_k=None)
    assert_alike(alone.ask("mood", TEXTS[:1], top_k=None), expected)
    with pytest.raises(
        ConfigurationError, match=r"input of its own \(global_attention_mask\).*; make the task a model of its"
    ):
        Served(tmp_path, {"mood": "text-classification", "vector": "feature-extraction"}).load()


def test_equal_texts_of_different_items_run_once(made: Made) -> None:
    """The labels of a zero-shot task are the same for every text; they must not cost a pass each."""
    served = Served(made(tiny.bert, "BertModel"), {"about": "zero-shot-classification"}).load()
    own = {"about": served.catalogue.check_params(served.task("about"), {"candidate_labels": ["a", "b"]}, field="")}
    batch = served.model.collate([served.model.prepare(text, own) for text in TEXTS])
    assert len(batch["lengths"]) == len(TEXTS) + 2
    assert served.model.prepare(TEXTS[0], own).content == served.model.prepare(TEXTS[0], own).content


def test_texts_of_very_different_lengths_are_not_padded_to_the_longest() -> None:
    """Twenty labels beside an article would be nearly all padding."""
    assert plan([(n, 10) for n in range(20)] + [(20, 500)]) == [[20], list(range(20))]
    assert plan([(0, 30), (1, 28), (2, 31)]) == [[2, 0, 1]]
    assert plan([]) == []


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["\u200b\u200b", "\x00", "\ud800", b"bytes", 7])
def test_what_is_no_text_is_refused(made: Made, content: object) -> None:
    """Nothing to read would be given a label with some confidence."""
    served = Served(made(tiny.bert, "BertForSequenceClassification", num_labels=3), {"mood": "text-classification"})
    with pytest.raises(InvalidInput):
        served.model.prepare(content, {"mood": served.task("mood").kind.params()})


def test_a_text_over_the_limit_is_cut_only_where_it_may_be(made: Made) -> None:
    """The limit is the checkpoint's, or a lower one of the settings."""
    folder = made(tiny.bert, "BertForSequenceClassification", num_labels=3)
    served = Served(folder, {"mood": "text-classification"}).load()
    assert isinstance(served.refusal("mood", LONG), InputTooLarge)
    expected = pipeline("text-classification", folder)(LONG, truncation=True)
    assert_alike(served.ask("mood", [LONG], truncation=True), [expected])
    assert "over 16" in str(
        Served(folder, {"mood": "text-classification"}, max_tokens=16).refusal("mood", TEXTS[2] * 2)
    )
    roberta = made(tiny.roberta, "RobertaForSequenceClassification", num_labels=3)
    assert "over 128" in str(Served(roberta, {"mood": "text-classification"}).refusal("mood", LONG))


def test_a_text_is_cut_on_the_folders_side(made: Made, tmp_path: Path) -> None:
    """By `truncation_side`, or by the truncation in tokenizer.json."""
    folder = tmp_path / "left"
    shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), folder)
    text = "the man is old. " + LONG + "a young woman."
    [right] = pipeline("text-classification", folder)(text, truncation=True)
    for file, changes in (
        ("tokenizer_config.json", {"truncation_side": "left"}),
        (
            "tokenizer.json",
            {"truncation": {"direction": "Left", "max_length": 64, "strategy": "LongestFirst", "stride": 0}},
        ),
    ):
        before = (folder / file).read_text("utf-8")
        (folder / file).write_text(json.dumps(json.loads(before) | changes), encoding="utf-8")
        [expected] = pipeline("text-classification", folder)(text, truncation=True)
        assert expected["score"] != pytest.approx(right["score"], abs=1e-4)
        served = Served(folder, {"mood": "text-classification"}).load()
        assert_alike(served.ask("mood", [text], truncation=True), [[expected]])
        (folder / file).write_text(before, encoding="utf-8")


def test_tokens_that_were_added_beside_the_tokenizers_file(made: Made, tmp_path: Path) -> None:
    """A token of tokenizer_config.json alone is a token; transformers adds it when it reads the folder."""
    folder = tmp_path / "added"
    shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    added = settings.get("added_tokens_decoder", {}) | {"5": {"content": "film was"} | plain}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": added}))
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)("the film was dull")["input_ids"]
    tokenizing = Tokenizing(Checkpoint(folder, "models.own"))
    tokenizing.check()
    assert tokenizing.encode("the film was dull").ids == theirs
    assert len(theirs) == 5  # with both ends


def without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def quantised(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def adapted(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (without_safetensors, r"no model\.safetensors, only pytorch_model\.bin .* save it again"),
        (pointer, "is a Git LFS pointer; fetch the file"),
        (cut, "transformers cannot load .*: SafetensorError.*; its weights are cut off or damaged"),
        (configured(quantization_config={"quant_method": "gptq"}), r"are quantised \(gptq\), which is not served"),
        (configured(quantization_config={"load_in_4bit": True}), r"are quantised \(quantization_config\)"),
        (configured(compression_config={"format": "marlin"}), r"are quantised \(marlin\)"),
        (quantised, r"are quantised \(classifier\.weight is of type F8_E4M3\)"),
        (adapted, "has an adapter .* beside the model's own weights; move the adapter to a folder of its own"),
        (configured(id2label=["good", "bad"]), "the labels have no numbers"),
        (configured(id2label={"0": "a", "1": "b"}, label2id=None), r"names 2 labels where classifier\.\w+ has 3"),
        (configured(id2label={"0": "a", "1": "b", "3": "c"}), "id2label has 3 labels, and none of the number 2"),
        (configured(model_type="unheard"), "transformers cannot load .*unheard"),
        (configured(model_type="unheard", auto_map={"AutoModel": "code.Own"}), "needs code of its own"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused_by_name(
    made: Made, tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    """With the table of fleet.toml, the cause and a remedy; no traceback of somebody else's library."""
    folder = tmp_path / "spoiled"
    shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), folder)
    spoil(folder)
    with pytest.raises(ConfigurationError, match=f"^models.own: .*{problem}"):
        Served(folder, {"mood": "text-classification"}).load()


@pytest.mark.parametrize(
    ("file", "named", "problem"),
    [
        ("config.json", {"AutoModelForSequenceClassification": "code.Own"}, "for AutoModelForSequenceClassification"),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.Slow", None]}, "for AutoTokenizer"),
        ("tokenizer_config.json", ["code.Slow", "code.Fast"], "for AutoTokenizer"),
    ],
)
def test_code_of_the_folders_own_is_refused_though_transformers_knows_the_model(
    made: Made, tmp_path: Path, file: str, named: Any, problem: str
) -> None:
    """Its answers may be other ones, such as those of an attention to both sides. The setting says that they are not."""
    folder = tmp_path / "own"
    shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), folder)
    settings = json.loads((folder / file).read_text()) | {"auto_map": named}
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(
        ConfigurationError, match=rf'{file} in .* names code of its own {problem}.*own_code = "ignored"'
    ):
        Served(folder, {"mood": "text-classification"}).load()
    assert Served(folder, {"mood": "text-classification"}, own_code="ignored").load().ask("mood", TEXTS)
    if file == "config.json":  # this kind takes the class without code of its own
        assert Served(folder, {"vector": "feature-extraction"}).load().ask("vector", TEXTS)


@pytest.mark.parametrize(
    ("maker", "kind", "file", "class_"),
    [
        (tiny.llama, "text-generation", "config.json", "AutoModelForCausalLM"),
        (tiny.llama, "text-generation", "tokenizer_config.json", "AutoTokenizer"),
        (tiny.t5, "summarization", "config.json", "AutoModelForSeq2SeqLM"),
        (tiny.vit, "image-classification", "preprocessor_config.json", "AutoImageProcessor"),
        (tiny.videomae, "video-classification", "config.json", "AutoModelForVideoClassification"),
        (tiny.wav2vec2, "automatic-speech-recognition", "preprocessor_config.json", "AutoFeatureExtractor"),
    ],
)
def test_code_of_the_folders_own_is_refused_for_every_kind(
    made: Made, tmp_path: Path, maker: Callable[..., Path], kind: str, file: str, class_: str
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(made(maker), folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {"auto_map": {class_: "code.Own"}}))
    with pytest.raises(ConfigurationError, match=f"names code of its own for {class_}"):
        _ = Served(folder, {"task": kind}).model.revision
    assert Served(folder, {"task": kind}, own_code="ignored").model.revision


def test_a_decoder_without_a_padding_token_classifies_in_batches(made: Made, tmp_path: Path) -> None:
    """transformers refuses its batches; its rows end where their padding begins."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    def gpt2(folder: Path) -> Path:
        size = tiny.byte_level(folder)
        config = GPT2Config(vocab_size=size, n_positions=128, n_embd=32, n_layer=2, n_head=2, num_labels=3)
        tiny._spread(GPT2ForSequenceClassification(config)).save_pretrained(folder)
        changed = json.loads((folder / "config.json").read_text()) | {"pad_token_id": None, "eos_token_id": size - 1}
        (folder / "config.json").write_text(json.dumps(changed))
        return folder

    served = Served(made(gpt2), {"mood": "text-classification"}).load()
    alone = [served.ask("mood", [text], top_k=None)[0] for text in TEXTS]
    assert_alike(served.ask("mood", TEXTS, top_k=None), alone)
    # where the tokenizer ends each text with that token, the network would read the token before it
    ending = tmp_path / "ending"
    shutil.copytree(made(gpt2), ending)
    tokenizer = json.loads((ending / "tokenizer.json").read_text())
    token = next(
        name for name, number in tokenizer["model"]["vocab"].items() if number == served.model.checkpoint.pad_id
    )
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [served.model.checkpoint.pad_id], "tokens": [token]}},
    }
    (ending / "tokenizer.json").write_text(json.dumps(tokenizer))
    ended = Served(ending, {"mood": "text-classification"}).load()
    expected = pipeline("text-classification", ending)(TEXTS[0], top_k=None)
    assert_alike(ended.ask("mood", TEXTS[:1], top_k=None), [expected])


@pytest.mark.parametrize(
    ("tasks", "options", "problem"),
    [
        ({}, {}, "has no tasks"),
        ({"a": "image-segmentation", "b": "text-classification"}, {}, "cannot share a pass"),
        ({"a": "text-classification"}, {"precison": "float32"}, r"options\.precison: not an option"),
        ({"a": "text-classification"}, {"function_to_apply": {"a": "tanh"}}, "must be one of sigmoid"),
        ({"a": "feature-extraction"}, {"pooling": "sum"}, "must be one of cls, max, mean"),
        ({"a": "text-classification"}, {"heads": {"b": "folder"}}, "no such task"),
        ({"a": "token-classification"}, {}, "no weights for classifier.*not trained for this kind"),
        ({"a": "question-answering"}, {}, "no weights for qa_outputs"),
    ],
)
def test_a_wrong_setting_is_named(made: Made, tasks: Any, options: dict[str, Any], problem: str) -> None:
    """transformers would fill missing weights with random numbers and answer all the same."""
    folder = (
        made(tiny.bert, "BertModel")
        if tasks.get("a", "").endswith(("answering", "token-classification"))
        else made(tiny.bert, "BertForSequenceClassification", num_labels=3)
    )
    with pytest.raises(ConfigurationError, match=problem):
        Served(folder, tasks, **options).load()


def test_half_precision_answers_nearly_the_same_and_says_so(made: Made) -> None:
    """The revision kept with each result names it: it is part of the answer."""
    folder = made(tiny.bert, "BertForSequenceClassification", num_labels=3)
    served = Served(folder, {"mood": "text-classification"}, backend=Backend("torch", "bf16")).load()
    assert served.model.revision == "1+torch-bf16"
    expected = pipeline("text-classification", folder)(TEXTS, top_k=None)
    assert_alike(
        [by_label(one) for one in served.ask("mood", TEXTS, top_k=None)], [by_label(one) for one in expected], 0.05
    )
    with pytest.raises(ConfigurationError, match="compile"):
        Served(folder, {"mood": "text-classification"}, backend=Backend("torch", compiled=True)).load()


def by_label(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(answer, key=lambda one: str(one["label"]))


def test_a_folder_without_what_is_needed_is_named(made: Made, tmp_path: Path) -> None:
    """Found when the worker starts, with what to do about it."""
    import shutil

    with pytest.raises(ConfigurationError, match=r"config\.json.*argosy models pull"):
        Served(tmp_path, {"mood": "text-classification"}).load()
    folder = shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), tmp_path / "copy")
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).unlink()
    with pytest.raises(ConfigurationError, match=r"no .*tokenizer\.json, and it cannot be made"):
        Served(folder, {"mood": "text-classification"}).load()


@pytest.mark.long
def test_an_old_folder_gets_a_tokenizer_made_of_its_vocabulary(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many checkpoints are older than tokenizer.json. It is made once; the user's folder stays as it is."""
    import shutil

    folder = shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    served = Served(folder, {"mood": "text-classification"}).load()
    assert_alike(served.ask("mood", TEXTS, top_k=None), pipeline("text-classification", folder)(TEXTS, top_k=None))
    assert not (folder / "tokenizer.json").exists()
    assert len(list((tmp_path / "cache" / "tokenizers").glob("*.json"))) == 1


def test_a_tokenizer_is_read_as_transformers_reads_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings beside tokenizer.json may overrule it; answers to other tokens would be wrong without a word."""
    import json
    import shutil

    folder = shutil.copytree(made(tiny.bert, "BertForSequenceClassification", num_labels=3), tmp_path / "copy")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["do_lower_case"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    served = Served(folder, {"mood": "text-classification"}).load()
    shouted = [text.upper() for text in TEXTS]
    expected = pipeline("text-classification", folder)(shouted, top_k=None)
    assert_alike(served.ask("mood", shouted, top_k=None), expected)
    lower_case = pipeline("text-classification", made(tiny.bert, "BertForSequenceClassification", num_labels=3))
    assert lower_case(shouted, top_k=None)[0][0]["score"] != pytest.approx(expected[0][0]["score"], abs=1e-3)


def test_preparing_and_finishing_never_import_torch(made: Made) -> None:
    """The Celery parent stays light, whatever the kinds."""
    folders = {
        "text-classification": made(tiny.bert, "BertForSequenceClassification", num_labels=3),
        "token-classification": made(tiny.distilbert, "DistilBertForTokenClassification", **NER),
        "fill-mask": made(tiny.bert, "BertForMaskedLM"),
        "feature-extraction": made(tiny.bert, "BertModel"),
    }
    code = f"""
import sys
from pathlib import Path
from tests.serving import Served
for kind, folder in { {kind: str(folder) for kind, folder in folders.items()}!r}.items():
    served = Served(Path(folder), {{"task": kind}})
    served.model.revision
    served.model.collate([served.model.prepare("a [MASK] film", {{"task": served.task("task").kind.params()}})])
loaded = sorted({{"torch", "transformers"}} & set(sys.modules))
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
