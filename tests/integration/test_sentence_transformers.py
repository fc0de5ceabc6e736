"""Folders that sentence-transformers has saved give its own vectors, or are refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import CNN, Dropout, LayerNorm, Pooling

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.serving import TOLERANCE, Served

TEXTS = ["the film was dull", "shares fell", "a moving film about the final of the cup in Paris", "good"]

#: Folders at random; `make test-folders` has more of them.
SEEDS = int(os.environ.get("ARGOSY_FOLDER_SEEDS", "4"))

MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny network with these modules behind it, as sentence-transformers itself does."""

    def save(*modules: Any, pooling: Any = "mean", **settings: Any) -> Path:
        torch.manual_seed(0)
        network = Transformer(str(tiny.bert(tmp_path / "network", "BertModel")))
        model = SentenceTransformer(
            modules=[network, Pooling(network.get_embedding_dimension(), pooling), *modules], device="cpu", **settings
        )
        model.save(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def expected(folder: Path, texts: list[str] = TEXTS) -> Any:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts)


def served(folder: Path, texts: list[str] = TEXTS, **options: Any) -> Any:
    model = Served(folder, {"vector": "feature-extraction"}, **options).load()
    return model.ask("vector", texts, normalize=False)


@pytest.mark.parametrize("pooling", [*MODES, ("max", "mean"), ("cls", "lasttoken", "weightedmean")])
def test_each_pooling(saved: Callable[..., Path], pooling: Any) -> None:
    """Alone or several, one after another."""
    folder = saved(pooling=pooling)
    np.testing.assert_allclose(served(folder), expected(folder), atol=TOLERANCE)


@pytest.mark.parametrize("pooling", MODES)
def test_a_pooling_by_its_earlier_name(saved: Callable[..., Path], pooling: str) -> None:
    """As folders say it that were saved before version 5.4."""
    folder = saved()
    names = {"cls": "cls_token", "lasttoken": "lasttoken"}
    earlier = {
        f"pooling_mode_{names.get(mode, f'{mode}_tokens'.replace('tokens_tokens', 'tokens'))}": mode == pooling
        for mode in MODES
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | earlier))
    np.testing.assert_allclose(served(folder), expected(folder), atol=TOLERANCE)
    np.testing.assert_allclose(served(folder, pooling=pooling), expected(folder), atol=TOLERANCE)


def test_further_layers(saved: Callable[..., Path]) -> None:
    """A narrower vector, without and with a bias; two layers; unit length."""
    folder = saved(
        Dense(32, 24, bias=False, activation_function=torch.nn.Identity()), Dense(24, 8), LayerNorm(8), Normalize()
    )
    found = served(folder)
    assert found[0].shape == (8,)
    np.testing.assert_allclose(found, expected(folder), atol=TOLERANCE)


def test_prompts_and_limits(saved: Callable[..., Path]) -> None:
    """The default prompt is put before each text; another one is chosen by its name."""
    folder = saved(prompts={"query": "what film: ", "document": "a film: "}, default_prompt_name="document")
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(served(folder), theirs.encode(TEXTS), atol=TOLERANCE)
    np.testing.assert_allclose(
        served(folder, prompt="query"), theirs.encode(TEXTS, prompt_name="query"), atol=TOLERANCE
    )
    with pytest.raises(ConfigurationError, match="the folder has no prompt 'passage'; it has document, query"):
        served(folder, prompt="passage")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": true}')
    model = Served(folder, {"vector": "feature-extraction"}).load()
    assert "over 6" in str(model.refusal("vector", TEXTS[2]))
    cut = model.ask("vector", TEXTS, truncation=True, normalize=False)
    np.testing.assert_allclose(cut, expected(folder), atol=TOLERANCE)
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")  # as old versions named it
    assert "over 6" in str(Served(folder, {"vector": "feature-extraction"}).refusal("vector", TEXTS[2]))
    np.testing.assert_allclose(cut, expected(folder), atol=TOLERANCE)


def test_a_width_that_the_folder_says(saved: Callable[..., Path]) -> None:
    """A matryoshka model that was saved with a narrower vector than its network's."""
    folder = saved(Normalize(), truncate_dim=16)
    found = served(folder)
    assert found[0].shape == (16,)
    np.testing.assert_allclose(found, expected(folder), atol=TOLERANCE)


def test_small_letters_are_not_those_of_special_tokens(saved: Callable[..., Path]) -> None:
    folder = saved()
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    texts = ["A FILM [SEP] of [MASK]", *TEXTS]
    np.testing.assert_allclose(served(folder, texts), expected(folder, texts), atol=TOLERANCE)


def test_the_encoder_of_a_t5(tmp_path: Path) -> None:
    """It has no decoder's weights, as sentence-t5 and gtr have none."""
    from transformers import T5EncoderModel

    folder = tiny.t5(tmp_path / "t5")
    T5EncoderModel.from_pretrained(folder).save_pretrained(folder)
    network = Transformer(str(folder))
    modules = [network, Pooling(network.get_embedding_dimension(), "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "saved"))
    np.testing.assert_allclose(served(tmp_path / "saved"), expected(tmp_path / "saved"), atol=TOLERANCE)


def test_a_network_in_a_folder_of_its_own_is_refused_with_the_way_out(saved: Callable[..., Path]) -> None:
    folder = saved()
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").rename(folder / "elsewhere.json")
    with pytest.raises(ConfigurationError, match=r"has its network in 0_Transformer, .*; save it again"):
        served(folder)


def test_sentences_are_compared_by_the_folders_vectors(saved: Callable[..., Path]) -> None:
    folder = saved(Dense(32, 8), pooling="max")
    model = Served(folder, {"alike": "sentence-similarity"}).load()
    [found] = model.ask("alike", [{"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}])
    vectors = expected(folder)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, vectors[1:] @ vectors[0], atol=TOLERANCE)


def test_sentences_are_alike_by_the_folders_function(saved: Callable[..., Path]) -> None:
    folder = saved(Dense(32, 8))
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    for name in ("dot", "euclidean", "manhattan"):
        written = json.dumps(settings | {"similarity_fn_name": name})
        (folder / "config_sentence_transformers.json").write_text(written)
        theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        vectors = theirs.encode(TEXTS)
        served = Served(folder, {"alike": "sentence-similarity"}).load()
        [found] = served.ask("alike", [{"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}])
        np.testing.assert_allclose(found, theirs.similarity(vectors[:1], vectors[1:])[0], atol=1e-4)


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("modules.json", {0: {"type": "custom_st.Transformer"}}, r"the module custom_st\.Transformer \(the folder"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 8}}}, "processing_kwargs is not"),
        ("sentence_bert_config.json", {"config_args": {"is_causal": False}}, r"config_args\.is_causal is not served"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is not served"),
        ("sentence_bert_config.json", {"modality_config": {"image": {"method": "forward"}}}, "modality_config is not"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity_fn_name 'maxsim' is not"),
        ("modules.json", {1: {"type": "sentence_transformers.sparse_encoder.models.SpladePooling"}}, "SpladePooling"),
        ("modules.json", {0: {"type": "sentence_transformers.models.WordEmbeddings"}}, "WordEmbeddings"),
        ("modules.json", {0: {"path": "0_Transformer"}}, r"Transformer \(0_Transformer\) of modules.json"),
        ("modules.json", {2: {"type": "sentence_transformers.models.CNN"}}, "the module CNN"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling 'attention' is not served"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "activation_function os.system is none of"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual = True is not served"),
        ("2_Dense/config.json", {"out_features": 9}, "has no weights for the layer: .*size mismatch"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "no prompt 'q'; it has document, query"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    saved: Callable[..., Path], file: str, change: Any, problem: str
) -> None:
    """The mean of the tokens would be an answer, and a wrong one."""
    folder = saved(Dense(32, 8))
    content = json.loads((folder / file).read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(name, int) else value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=problem):
        served(folder)


def test_a_prompt_that_is_not_pooled_is_refused(saved: Callable[..., Path]) -> None:
    folder = saved(prompts={"query": "what film: "})
    config = folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"include_prompt": False}))
    np.testing.assert_allclose(served(folder), expected(folder), atol=TOLERANCE)
    with pytest.raises(ConfigurationError, match="pooling leaves the prompt out, which is not served"):
        served(folder, prompt="query")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_folders_at_random(tmp_path: Path, seed: int) -> None:
    """Modules in any number and order, in the old and the new form: the vectors of sentence-transformers, or a refusal
    of what is not served.
    """
    random = Random(seed)
    torch.manual_seed(seed)
    network = Transformer(str(tiny.bert(tmp_path / "network", "BertModel")))
    convolves = random.random() < 0.15
    first = [network, CNN(32, 8, [1, 3])] if convolves else [network]
    chosen = random.sample(MODES, random.choice([1, 1, 1, 2, 3]))
    pooling = Pooling(16 if convolves else 32, tuple(chosen) if len(chosen) > 1 else chosen[0])
    modules = [*first, pooling, *layers_at_random(random, pooling.get_embedding_dimension())]
    prompts = {"query": "what film: ", "document": "A film: "}
    model = SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts=prompts,
        default_prompt_name=random.choice([None, *prompts]),
        truncate_dim=random.choice([None, 5, 16]),
        similarity_fn_name=random.choice([None, "dot", "euclidean"]),
    )
    folder = tmp_path / "saved"
    model.save(str(folder), create_model_card=False)
    if random.random() < 0.5:
        in_the_earlier_form(random, folder, [] if convolves else chosen)
    texts = [*TEXTS, "A FILM [SEP] of Paris"]
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if convolves:
        with pytest.raises(ConfigurationError, match="the module CNN"):
            served(folder)
        return
    own = Served(folder, {"vector": "feature-extraction", "alike": "sentence-similarity"}).load()
    vectors = np.array([theirs.encode([text])[0] for text in texts])
    np.testing.assert_allclose(own.ask("vector", texts, normalize=False, truncation=True), vectors, atol=1e-4)
    [alike] = own.ask("alike", [{"source_sentence": texts[0], "sentences": texts[1:]}], truncation=True)
    np.testing.assert_allclose(alike, theirs.similarity(vectors[:1], vectors[1:])[0], rtol=1e-3, atol=1e-4)


def layers_at_random(random: Random, width: int) -> list[Any]:
    layers: list[Any] = []
    activations = (torch.nn.Tanh, torch.nn.Identity, torch.nn.GELU, torch.nn.ReLU)
    for _ in range(random.randint(0, 4)):
        kind = random.choice(["dense", "norm", "normalize", "dropout"])
        if kind == "dense":
            narrower = random.choice([8, 24, 40])
            layers.append(
                Dense(width, narrower, bias=random.random() < 0.5, activation_function=random.choice(activations)())
            )
            width = narrower
        else:
            layers.append({"norm": LayerNorm(width), "normalize": Normalize(), "dropout": Dropout(0.5)}[kind])
    return layers


def in_the_earlier_form(random: Random, folder: Path, poolings: list[str]) -> None:
    """Write the files as sentence-transformers did before 5.4."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"max_seq_length": random.choice([None, 6, 64]), "do_lower_case": random.random() < 0.5}
    (folder / "sentence_bert_config.json").unlink()
    (folder / random.choice(["sentence_bert_config.json", "sentence_roberta_config.json"])).write_text(
        json.dumps(settings)
    )
    names = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}
    flags = {f"pooling_mode_{names.get(mode, mode)}": True for mode in poolings}
    if poolings:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | flags))
