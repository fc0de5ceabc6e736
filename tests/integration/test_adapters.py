"""LoRA adapters on one backbone: rows of different adapters share a pass, and answer as peft's merged models do."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.serving import Served, assert_alike
from workers.models.adapters.lora_folder import Adapter
from workers.models.backends.choice import Backend

TEXTS = ["a good film", "the team was bad and dull", "he said it was fine", "film", "she said it was dull and good"]

#: Adapters of different ranks, on different layers; by name, what peft is told.
ADAPTERS: dict[str, dict[str, Any]] = {
    "mood": {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 16, "target_modules": ["query", "value"]},
    "about": {
        "task_type": "SEQ_CLS",
        "r": 2,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": "all-linear",
        "rank_pattern": {"layer.0.attention.self.query": 3},
        "alpha_pattern": {"layer.0.attention.self.query": 9},
    },
    "names": {"task_type": "TOKEN_CLS", "r": 8, "lora_alpha": 8, "target_modules": ["dense"]},
}
LABELS = {"mood": 3, "about": 5, "names": 4}
KINDS = {"mood": "text-classification", "about": "text-classification", "names": "token-classification"}


def adapted(base: Path, folder: Path, **config: Any) -> Any:
    """Write an adapter of random weights as peft saves it, and return the model with it merged in."""
    import peft
    import transformers

    auto = {
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "TOKEN_CLS": "AutoModelForTokenClassification",
        "CAUSAL_LM": "AutoModelForCausalLM",
    }[config["task_type"]]
    labels = {"num_labels": LABELS[folder.name]} if folder.name in LABELS else {}
    network = getattr(transformers, auto).from_pretrained(base, **labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it gives up
        model: Any = peft.get_peft_model(network, peft.LoraConfig(init_lora_weights=False, **config))
    model.save_pretrained(folder)
    return model.eval().merge_and_unload()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("base"), "BertModel")


@pytest.fixture(scope="module")
def merged(base: Path) -> dict[str, Any]:
    """The merged models by task; the adapters lie beside the base."""
    import torch

    torch.manual_seed(0)
    found = {name: adapted(base, base / "adapters" / name, **config) for name, config in ADAPTERS.items()}
    names = {"id2label": {n: f"topic {n}" for n in range(5)}}
    (base / "adapters" / "about" / "config.json").write_text(json.dumps(names), encoding="utf-8")
    return found


def folders(base: Path) -> dict[str, str]:
    return {name: str(base / "adapters" / name) for name in ADAPTERS}


@pytest.fixture(scope="module")
def served(base: Path, merged: dict[str, Any]) -> Served:
    return Served(base, {**KINDS, "vector": "feature-extraction"}, adapters=folders(base)).load()


def expected(merged: dict[str, Any], base: Path, task: str, text: str) -> list[dict[str, Any]]:
    """Return what the merged model makes of a text, by the lines that one writes."""
    import torch
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")
    with torch.inference_mode():
        scores = merged[task](**encoded).logits[0].softmax(-1)
    prefix = "topic " if task == "about" else "LABEL_"
    order = scores.argsort(descending=True).tolist()
    return [{"label": f"{prefix}{n}", "score": float(scores[n])} for n in order]


@pytest.mark.parametrize("task", ["mood", "about"])
def test_an_adapter_answers_as_its_merged_model(task: str, served: Served, merged: dict[str, Any], base: Path) -> None:
    """Alone, and with its own neighbours; its labels are those of its own head."""
    wanted = [expected(merged, base, task, text) for text in TEXTS]
    assert_alike(served.ask(task, TEXTS, top_k=None), wanted)
    assert_alike(served.ask(task, TEXTS[:1], top_k=None), wanted[:1])


def test_rows_of_different_adapters_share_a_pass(served: Served, merged: dict[str, Any], base: Path) -> None:
    """Tasks at random on each text, the plain backbone's vector among them: nothing rubs off on a neighbour."""
    from tests.serving import answered

    random = Random(1)
    check = served.catalogue.check_params
    own: dict[str, dict[str, Any]] = {"mood": {"top_k": None}, "about": {"top_k": None}, "names": {}, "vector": {}}
    params = {task: check(served.task(task), given, field="params") for task, given in own.items()}
    [alone] = served.ask("vector", TEXTS[:1])
    for _ in range(4):
        items = [(text, {t: params[t] for t in random.sample(sorted(own), random.randint(1, 4))}) for text in TEXTS]
        before = served.model.passes
        answers = answered(served.model, items)
        assert served.model.passes == before + 1
        for (text, _), found in zip(items, answers, strict=True):
            for task in {"mood", "about"} & found.keys():
                assert_alike(found[task], expected(merged, base, task, text))
        if "vector" in answers[0]:
            assert_alike(answers[0]["vector"].tolist(), alone.tolist())


def deberta(folder: Path) -> Path:
    """Write a DeBERTa whose queries and keys also read the embeddings of relative positions, which have no rows."""
    import transformers

    config = transformers.DebertaV2Config(
        vocab_size=tiny.wordpiece(folder), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        intermediate_size=48, max_position_embeddings=64, relative_attention=True, position_buckets=16,
        norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    tiny._spread(transformers.DebertaV2ForSequenceClassification(config)).save_pretrained(folder)
    return folder


def longformer(folder: Path) -> Path:
    """Write a Longformer, whose layers read `(tokens, rows, width)`."""
    import transformers

    config = transformers.LongformerConfig(
        vocab_size=tiny.wordpiece(folder), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        intermediate_size=48, max_position_embeddings=66, attention_window=8, pad_token_id=0, type_vocab_size=2,
    )  # fmt: skip
    tiny._spread(transformers.LongformerForTokenClassification(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("maker", [deberta, longformer])
def test_rows_that_a_layer_does_not_tell_apart_share_no_pass(tmp_path: Path, maker: Callable[[Path], Path]) -> None:
    """Each adapter has a pass of its own, in which the answers are those of the adapter alone."""
    from tests.serving import answered

    classifies, base = maker is deberta, maker(tmp_path / "base")
    layers = ["query_proj", "key_proj", "value_proj"] if classifies else ["query", "value"]
    config = {"task_type": "SEQ_CLS" if classifies else "TOKEN_CLS", "r": 4, "lora_alpha": 64, "target_modules": layers}
    merged = {task: adapted(base, tmp_path / task, **config) for task in ("one", "two")}
    tasks = {**dict.fromkeys(merged, "text-classification" if classifies else "token-classification")}
    tasks["vector"] = "feature-extraction"
    served = Served(base, tasks, adapters={task: str(tmp_path / task) for task in merged}).load()
    own: dict[str, Any] = {"top_k": None} if classifies else {"aggregation_strategy": "none", "ignore_labels": []}
    check = served.catalogue.check_params
    params = {task: check(served.task(task), own, field="params") for task in merged}
    params["vector"] = check(served.task("vector"), {}, field="params")
    before = served.model.passes
    answers = answered(served.model, [(text, params) for text in TEXTS])
    assert served.model.passes == before + 3
    for task in merged:
        assert_alike([found[task] for found in answers], served.ask(task, TEXTS, **own))
        if classifies:
            assert_alike([found[task] for found in answers], [expected(merged, base, task, text) for text in TEXTS])
    assert answers[0]["one"] != answers[0]["two"]


def test_tokens_are_labelled_by_their_adapter(served: Served, merged: dict[str, Any], base: Path) -> None:
    """Token by token, as the merged model does."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    for text in TEXTS[:2]:
        with torch.inference_mode():
            scores = merged["names"](**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)[1:-1]
        [found] = served.ask("names", [text], aggregation_strategy="none", ignore_labels=[])
        assert [one["entity"] for one in found] == [f"LABEL_{n}" for n in scores.argmax(-1).tolist()]
        assert_alike([one["score"] for one in found], scores.amax(-1).tolist())


def test_an_adapter_is_part_of_the_revision(base: Path, merged: dict[str, Any], served: Served) -> None:
    """Its weights decide the answers as much as the backbone's."""
    plain = Served(base, {"vector": "feature-extraction"})
    assert served.model.revision != plain.model.revision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter; only LORA is served"),
        ({"use_dora": True}, "use_dora is not served; merge the adapter"),
        ({"bias": "all"}, "the adapter changes biases"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is not served"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication is not served"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' has changed the model's own weights"),
        ({"init_lora_weights": "olora"}, "'olora' has changed the model's own weights, which rows share; convert it"),
    ],
)
def test_what_is_not_served_is_refused_when_the_worker_starts(
    base: Path, merged: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """By name, and with what to do."""
    source = base / "adapters" / "mood"
    config = json.loads((source / "adapter_config.json").read_text("utf-8")) | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").symlink_to(source / "adapter_model.safetensors")
    with pytest.raises(ConfigurationError, match=message):
        _ = Served(base, {"mood": KINDS["mood"]}, adapters={"mood": str(tmp_path)}).model.revision


def test_an_adapter_in_a_pickle_is_refused(merged: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """As peft saved it until version 0.6."""
    shutil.copy(base / "adapters" / "mood" / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(
        ConfigurationError, match=r"has only adapter_model\.bin .*; load it with peft and save it again"
    ):
        _ = Served(base, {"mood": KINDS["mood"]}, adapters={"mood": str(tmp_path)}).model.revision


def test_an_adapter_of_another_model_is_refused(merged: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """It has layers that this one lacks."""
    other = tiny.distilbert(tmp_path / "other", "DistilBertModel")
    with pytest.raises(ConfigurationError, match=r"options\.adapters: .*was it made for another"):
        Served(other, {"vector": "feature-extraction"}, adapters={"vector": folders(base)["mood"]}).load()


def test_a_saved_tensor_of_another_shape_is_refused(merged: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """As of an adapter whose training added tokens."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(base / "adapters" / "mood", tmp_path / "mood")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    save_file(tensors | {name: next(iter(tensors.values())).new_zeros(7, 32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigurationError, match=r"word_embeddings\.weight has the shape \(7, 32\), the model's"):
        Served(base, {"mood": KINDS["mood"]}, adapters={"mood": str(folder)}).load()


def test_mistakes_in_the_settings_are_named(merged: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """A task that is not there, a folder that is none, a backend that cannot."""
    with pytest.raises(ConfigurationError, match=r"options\.adapters\.other: the model has no such task"):
        _ = Served(base, {"mood": KINDS["mood"]}, adapters={"other": folders(base)["mood"]}).model.revision
    with pytest.raises(ConfigurationError, match="name a folder saved by peft"):
        Adapter(tmp_path, "models.own.options.adapters").check()
    other = Served(base, {"mood": KINDS["mood"]}, Backend("openvino"), adapters={"mood": folders(base)["mood"]})
    with pytest.raises(ConfigurationError, match="adapters run on torch"):
        _ = other.model.revision


def test_a_model_that_writes_has_adapters_in_its_steps(tmp_path: Path) -> None:
    """Token for token as the merged models write, with requests of both and of the plain model in the same steps, whose
    prompts are alike: what is remembered of a prompt is the adapter's own."""
    import torch

    torch.manual_seed(1)
    base = tiny.llama(tmp_path / "base")
    config = {"task_type": "CAUSAL_LM", "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    merged = {name: adapted(base, tmp_path / name, r=rank, **config) for name, rank in (("formal", 2), ("brief", 6))}
    tasks = dict.fromkeys((*merged, "plain"), "text-generation")
    served = Served(base, tasks, adapters={name: str(tmp_path / name) for name in merged}).load()
    prompts = ["Once upon a time there was", "Why is the sky blue?", "Once upon a time"]
    for _ in range(2):  # the second time their prompts are remembered
        answers = _asked_together(served, prompts)
        for (task, prompt), answer in answers.items():
            network = merged.get(task)
            if network is not None:
                assert answer["text"] == _generated(network, served, prompt), (task, prompt)
    assert len({answers[task, prompts[0]]["text"] for task in tasks}) == 3


def test_a_decoder_whose_experts_have_adapters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert reads some of the tokens of all rows, and nothing tells which."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaMLP

    base = tiny.llama(tmp_path / "base")
    config = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["down_proj"]}
    adapted(base, tmp_path / "formal", **config)
    whole = LlamaMLP.forward

    def expert(self: Any, hidden: Any) -> Any:
        chosen = hidden[..., 0] > 0
        return torch.zeros_like(hidden).masked_scatter(chosen[..., None], whole(self, hidden[chosen]))

    monkeypatch.setattr(LlamaMLP, "forward", expert)
    tasks = dict.fromkeys(("formal", "plain"), "text-generation")
    with pytest.raises(
        ConfigurationError, match=r"options\.adapters: .*does not tell the rows apart; merge the adapter"
    ):
        Served(base, tasks, adapters={"formal": str(tmp_path / "formal")}).load()


def _asked_together(served: Served, prompts: list[str]) -> dict[tuple[str, str], Any]:
    from tests.serving import answered

    params = {
        task: served.catalogue.check_params(served.task(task), {"max_new_tokens": 12}, field="params")
        for task in served.model.spec.tasks
    }
    asked = [(task, prompt) for prompt in prompts for task in params]
    answers = answered(served.model, [(prompt, {task: params[task]}) for task, prompt in asked])
    return {(task, prompt): answer[task] for (task, prompt), answer in zip(asked, answers, strict=True)}


def _generated(network: Any, served: Served, prompt: str) -> str:
    import torch

    tokenizer = served.model.prompts.tokenizing.tokenizer
    ids = torch.tensor([served.model.prompts.text(prompt)])
    made = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    return str(tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True)).replace("\0", "\ufffd")
