"""What the steps write is what transformers writes for each prompt by itself, whoever joins and leaves meanwhile."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from producers.wire.messages import Message, MessagesInput
from tests import tiny_checkpoints
from tests.serving import Served
from workers.models.generation.decoder_network import DecoderNetwork, Feed
from workers.models.generation.generation_model import GenerationModel
from workers.models.generation.generation_request import GenerationRequest, Sampling, Written
from workers.models.generation.key_value_memory import Block
from workers.models.generation.prompts import Prompts
from workers.models.interface import ragged
from workers.models.sources.model_source import Pulled

TASKS = {
    "chat": "text-generation",
    "urgency": {
        "kind": "prompted-classification",
        "prompt": "How urgent is the message? Message: {input}",
        "labels": ["low", "high", "higher"],
    },
    "extract": {
        "kind": "prompted-json",
        "prompt": "Where is it? {input}",
        "schema": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "sure": {"type": "boolean"}},
            "required": ["city", "sure"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder, TASKS).load()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def prompts(count: int, seed: int) -> list[list[int]]:
    """Random tokens, none of them special."""
    rng = random.Random(seed)
    return [[rng.randrange(5, 260) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def generated(theirs: Any, tokens: list[int], count: int, **settings: Any) -> list[int]:
    """What transformers writes after a prompt, alone."""
    import torch

    ids = torch.tensor([tokens])
    made = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, **settings)
    return [token for token in made[0, len(tokens) :].tolist() if token != 2]


def shown(served: Served, tokens: list[int]) -> str:
    """Their text, with what the store puts in the place of NUL."""
    text: str = served.model.prompts.tokenizing.tokenizer.decode(tokens)
    return text.replace("\0", "\ufffd")


def written(model: GenerationModel, requests: Sequence[GenerationRequest], *, seed: int) -> list[Written]:
    """Have requests join at random steps, some of others' leave again, and return what each came to."""
    rng = random.Random(seed)
    waiting = [(n, request) for n, request in enumerate(requests)]
    found: dict[Any, Written] = {}
    others = 0
    while waiting or model.busy:
        for _ in range(rng.randint(0, 4)):
            if waiting:
                n, request = waiting.pop(0)
                model.join(n, "chat", ragged.pack([request.packed().tobytes()])[0], urgency=rng.choice([0, 3, 9]))
        if rng.random() < 0.2 and waiting:
            others += 1
            neighbour = GenerationRequest(prompts(1, others)[0], 100)
            model.join(("other", others), "chat", ragged.pack([neighbour.packed().tobytes()])[0], urgency=0)
        if rng.random() < 0.2 and others:
            model.leave(("other", rng.randint(1, others)))
        for one in model.step():
            if one.ended:
                found[one.key] = one.output
    return [found[n] for n in range(len(requests))]


def test_greedy_is_token_for_token_what_transformers_generates(served: Served, theirs: Any) -> None:
    """Forty prompts, of which more than a step holds are there at a time, so that they take turns."""
    own = prompts(40, seed=1)
    lengths = [random.Random(n).randint(1, 50) for n in range(40)]
    answers = written(served.model, [GenerationRequest(p, n) for p, n in zip(own, lengths, strict=True)], seed=2)
    for prompt, count, answer in zip(own, lengths, answers, strict=True):
        expected = generated(theirs, prompt, count)
        assert answer.text == shown(served, expected)
        assert answer.completion_tokens == len(expected) + (answer.finish_reason == "stop")


def test_the_repetition_penalty_is_theirs(served: Served, theirs: Any) -> None:
    own = prompts(4, seed=3)
    for prompt in own:
        [answer] = written(served.model, [GenerationRequest(prompt, 20, Sampling(repetition_penalty=1.7))], seed=1)
        expected = generated(theirs, prompt, 20, repetition_penalty=1.7)
        assert answer.text == shown(served, expected)


def told(folder: Path, source: Path, **settings: Any) -> Path:
    """Copy a folder whose generation has these settings, too."""
    shutil.copytree(source, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), encoding="utf-8")
    return folder


def test_a_repetition_penalty_of_the_checkpoint(folder: Path, theirs: Any, tmp_path: Path) -> None:
    """As Qwen 2.5 has; a request's own is used instead."""
    model = Served(told(tmp_path / "told", folder, repetition_penalty=1.3), TASKS).load()
    for own, penalty in (({}, 1.3), ({"repetition_penalty": 1.0}, 1.0)):
        tokens = model.model.prompts.text("Once")
        expected = generated(theirs, tokens, 20, repetition_penalty=penalty)
        assert model.ask("chat", ["Once"], max_new_tokens=20, **own)[0]["text"] == shown(model, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [5, 6, 7], "begin_suppress_tokens": list(range(8, 200))},
        {"bad_words_ids": [[9], [5, 6]]},
        {"forced_eos_token_id": 0},
        {"min_length": 15, "eos_token_id": list(range(40))},
        {"min_new_tokens": 12, "eos_token_id": list(range(40))},
    ],
    ids="+".join,
)
def test_rules_of_the_checkpoint_are_obeyed(
    folder: Path, theirs: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """By transformers' own processors, so that the answers are those of its `generate`."""
    served = Served(told(tmp_path / "told", folder, **settings), TASKS).load()
    for text in ("Once", "The quick brown fox"):
        expected = generated(theirs, served.model.prompts.text(text), 20, **settings)
        expected = [token for token in expected if token not in settings.get("eos_token_id", ())]
        assert served.ask("chat", [text], max_new_tokens=20)[0]["text"] == shown(served, expected)


def test_wrong_rules_of_the_checkpoint_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"generation_config.json: `ngram_size` has to be .* correct it"):
        Served(told(tmp_path / "told", folder, no_repeat_ngram_size="two"), TASKS).load()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"sequence_bias": [[[5], 1.0]]},
            r"the checkpoint sets sequence_bias = \[\[\[5\], 1.0\]\], which is not served",
        ),
        ({"num_beams": 4}, "sets num_beams = 4, which is not served; remove it"),
        ({"dola_layers": "high"}, "sets dola_layers = high, which is not served; remove it"),
        ({"repetition_penalty": "high"}, "repetition_penalty must be between 0.01 and 100, not 'high'"),
    ],
)
def test_other_settings_of_the_checkpoint_are_refused(
    folder: Path, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    """Its answers in transformers are not the likeliest tokens. Settings that change nothing are served."""
    with pytest.raises(ConfigurationError, match=problem):
        _ = Served(told(tmp_path / "told", folder, **settings), TASKS).model.revision
    neutral = {"no_repeat_ngram_size": 0, "num_beams": 1, "bad_words_ids": None, "sequence_bias": [], "min_length": 0}
    _ = Served(told(tmp_path / "neutral", folder, **neutral), TASKS).model.revision


def test_drawn_tokens_do_not_depend_on_neighbours(served: Served) -> None:
    """By the seed alone; another seed writes another text, and so does none at all, each time."""
    alone = [served.ask("chat", ["Once"], temperature=1.0, top_k=50, top_p=0.9, seed=n)[0]["text"] for n in range(3)]
    again = served.ask("chat", ["Once", "upon", "a time", "Once"], temperature=1.0, top_k=50, top_p=0.9, seed=1)
    assert again[0]["text"] == again[3]["text"] == alone[1]
    assert len(set(alone)) == 3
    first, second = (served.ask("chat", ["Once"], temperature=1.0)[0]["text"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("params", [{"temperature": 1e-40}, {"temperature": 5.0, "top_p": 1e-60}])
def test_as_good_as_no_chance_is_the_likeliest(served: Served, params: dict[str, float]) -> None:
    """What 32 bits cannot tell from nothing is no fault, which would be everybody's in the step."""
    [likeliest, drawn] = (served.ask("chat", ["Once"], max_new_tokens=9, **own)[0] for own in ({}, params))
    assert drawn["text"] == likeliest["text"]


def test_what_is_not_a_number_fails_and_leaves_nothing_behind(served: Served) -> None:
    """As in 16 bits it may come to be. Else it would be in the keys that the next ones' masks only multiply by 0."""
    import torch

    def poisoned(_: Any, given: tuple[torch.Tensor, ...], found: torch.Tensor) -> torch.Tensor:
        return found.masked_fill((given[0] == 250).unsqueeze(-1), torch.nan)

    texts = ["Once upon a time", "there was", "a"]
    before = [one["text"] for one in served.ask("chat", texts, max_new_tokens=20)]
    hook = served.model._engine._network._model.get_input_embeddings().register_forward_hook(poisoned)
    try:
        with pytest.raises(FloatingPointError, match="not a number"):
            written(
                served.model, [GenerationRequest([*range(20, 60), 250], 9), GenerationRequest([30] * 60, 9)], seed=1
            )
        served.model.clear()
        assert [one["text"] for one in served.ask("chat", texts, max_new_tokens=20)] == before
    finally:
        hook.remove()


def test_a_stop_string_ends_the_text_and_is_left_out(served: Served) -> None:
    whole = served.ask("chat", ["Once upon"], max_new_tokens=60)[0]["text"]
    stop = whole[11:14]
    cut = served.ask("chat", ["Once upon"], max_new_tokens=60, stop=[stop, "never there"])[0]
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_labels_are_scored_by_their_likelihood(served: Served, theirs: Any) -> None:
    """All in one pass, as if each had followed the prompt by itself; "high" is not "higher" cut short."""
    import torch

    texts = ["My house is on fire.", "x", "What are your opening hours on Sunday?"]
    answers = served.ask("urgency", texts, top_k=None)
    made = served.model.prompts
    for text, answer in zip(texts, answers, strict=True):
        prompt = made.templated(TASKS["urgency"]["prompt"], text)  # type: ignore[index]
        chances = {}
        for label in ("low", "high", "higher"):
            ids = [*made.bare(label), 2]
            with torch.inference_mode():
                logits = theirs(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            chances[label] = sum(float(logits[len(prompt) - 1 + n, token]) for n, token in enumerate(ids))
        total = np.logaddexp.reduce(list(chances.values()))
        expected = {label: float(np.exp(chance - total)) for label, chance in chances.items()}
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(expected, abs=1e-4)


def test_a_label_ends_by_any_of_the_end_tokens(folder: Path, theirs: Any, tmp_path: Path) -> None:
    """Whichever the checkpoint names first: a label's likelihood is the sum over them."""
    import torch

    text, chances = "My house is on fire.", {}
    for name, ends in {"one": [0, 2], "other": [2, 0], "twice": [2, 0, 2]}.items():
        served = Served(told(tmp_path / name, folder, eos_token_id=ends), TASKS).load()
        [answer] = served.ask("urgency", [text], top_k=None)
        made = served.model.prompts
        prompt = made.templated(TASKS["urgency"]["prompt"], text)  # type: ignore[index]
        for label in ("low", "high", "higher"):
            ids = made.bare(label)
            with torch.inference_mode():
                logits = theirs(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            own = sum(float(logits[len(prompt) - 1 + n, token]) for n, token in enumerate(ids))
            chances[label] = own + float(logits[-1, [0, 2]].logsumexp(0))
        total = np.logaddexp.reduce(list(chances.values()))
        expected = {label: float(np.exp(chance - total)) for label, chance in chances.items()}
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(expected, abs=1e-4)


def test_json_is_of_the_schema(served: Served) -> None:
    """Random weights know nothing, and still write nothing else."""
    answers = served.ask("extract", [f"text {n}" for n in range(10)])
    assert all(set(one) == {"city", "sure"} and one["city"] in ("Rome", "Oslo") for one in answers)


def test_what_begins_alike_is_read_once(served: Served) -> None:
    """The template's tokens from the second item on, and a dialogue's earlier turns."""
    network = served.model._engine._network
    opening = "a long opening that two prompts have in common, and then "
    first, second = (served.ask("chat", [opening + end], max_new_tokens=4)[0] for end in ("this", "that other one"))
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, second["cached_tokens"])
    assert second["cached_tokens"] >= len(served.model.prompts.text(opening)) - 1
    served.ask("urgency", ["one"])
    before = network.tokens_read
    served.ask("urgency", ["six"])
    made = served.model.prompts
    prompt = made.templated(TASKS["urgency"]["prompt"], "six")  # type: ignore[index]
    labels = sum(len(made.bare(label)) for label in ("low", "high", "higher"))
    assert network.tokens_read - before <= len(prompt) - made.shared(TASKS["urgency"]["prompt"]) + labels  # type: ignore[index]


def test_prompts_of_items_own_are_not_remembered_without_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's parameters may come with the item: a template with a number in it, say."""
    read: list[str] = []
    encode = Prompts.bare

    def counted(self: Prompts, text: str) -> list[int]:
        read.append(text)
        return encode(self, text)

    monkeypatch.setattr(Prompts, "bare", counted)
    prompts = served.model.prompts
    for n in range(500):
        prompts.shared(f"{n}. How urgent is it? {{input}}")
    once = len(read)
    prompts.shared("499. How urgent is it? {input}")
    assert len(read) == once, "the latest are known"
    prompts.shared("0. How urgent is it? {input}")
    assert len(read) > once, "the first are not"


def test_prompts_that_have_no_room(served: Served) -> None:
    """Refused before anything is computed, with what to do."""
    with pytest.raises(InputTooLarge, match="over 256; shorten it, or ask for fewer"):
        served.ask("chat", ["word " * 60], max_new_tokens=200)
    with pytest.raises(InputTooLarge, match="over 256"):
        served.ask("urgency", ["word " * 200])
    assert served.ask("chat", ["word " * 40])[0]["completion_tokens"] > 0
    many = [f"{n} of a hundred labels" for n in range(100)]
    assert "params.labels: have 2," in str(served.refusal("urgency", "one", labels=many))


def test_messages_go_through_the_template(folder: Path, served: Served, theirs: Any) -> None:
    """transformers' own rendering; a model without a template refuses messages and takes prompts as they are."""
    from transformers import AutoTokenizer

    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Again {{ 7 * 7 }}")]
    given = MessagesInput(tuple(Message(role, content) for role, content in turns))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=True)["input_ids"]
    [answer] = served.ask("chat", [given], max_new_tokens=9)
    assert answer["prompt_tokens"] == len(ids)
    assert answer["text"] == tokenizer.decode(generated(theirs, ids, 9))
    as_message = served.ask("chat", ["Hello"], as_message=True)[0]["text"]
    assert as_message == served.ask("chat", [MessagesInput((Message("user", "Hello"),))])[0]["text"]


def test_a_model_without_a_template(tmp_path: Path) -> None:
    bare = Served(tiny_checkpoints.llama(tmp_path / "bare", template=None), TASKS).load()
    with pytest.raises(InvalidInput, match="no chat template"):
        bare.ask("chat", [MessagesInput((Message("user", "Hello"),))])
    assert len(bare.ask("urgency", ["Hello"])) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_token": 3}, "not an option"),
        ({"step_rows": 0}, "step_rows: must be a whole number, 1 or more, not 0"),
        ({"prefix_tokens": -1}, "prefix_tokens: must be a whole number, 0 or more"),
        ({"max_tokens": "many"}, "max_tokens: must be a whole number, 1 or more, not 'many'"),
        ({"gpu_memory_share": 1}, "gpu_memory_share: must be a number over 0 and under 1, not 1"),
        ({"gpu_memory_share": "half"}, "gpu_memory_share: must be a number over 0"),
    ],
)
def test_wrong_options_are_named(folder: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        _ = Served(folder, TASKS, **options).model.revision


def tiny_decoder(folder: Path, name: str, **config: Any) -> Path:
    import transformers

    size = tiny_checkpoints.byte_level(folder)
    settings = getattr(transformers, f"{name}Config")(vocab_size=size, **config)
    head = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    tiny_checkpoints._spread(head(settings)).save_pretrained(folder)
    return folder


#: Its biases are by the places of the tokens.
MPT = {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 128}


def test_labels_that_stand_beside_each_other_are_refused_where_places_count(tmp_path: Path) -> None:
    """A label's likelihood would depend on the labels before it."""
    folder = tiny_decoder(tmp_path / "mpt", "Mpt", **MPT)
    with pytest.raises(ConfigurationError, match=r"models\.own\.tasks\.urgency: the architecture cannot score labels"):
        Served(folder, TASKS).load()


@pytest.mark.parametrize(
    ("name", "config", "problem"),
    [
        ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}, "its attention does not work in steps"),
        (  # its window counts from the end of the longest row
            "GPTNeo",
            {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
            | {"window_size": 16, "max_position_embeddings": 128},
            "its answers in steps differ from those of transformers",
        ),
        (
            "DeepseekV3",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
            | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
            | {"intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "first_k_dense_replace": 2},
            "its attention does not work in steps",
        ),
    ],
)
def test_an_architecture_that_is_not_served_is_refused_at_the_start(
    tmp_path: Path, name: str, config: dict[str, Any], problem: str
) -> None:
    """Its worker was ready, and every item failed."""
    folder = tiny_decoder(tmp_path / name, name, **config)
    with pytest.raises(ConfigurationError, match=rf"^models\.own: .*{problem}.*; use a checkpoint of another"):
        Served(folder, {"chat": "text-generation"}).load()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        # whose attention transformers cannot replace; it adds its mask to the scores
        ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 128}),
        ("XGLM", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 2, "max_position_embeddings": 128}),
        ("Mpt", MPT),
        ("StableLm", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}),
    ],
)
def test_an_architecture_that_is_served_starts(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    Served(tiny_decoder(tmp_path / name, name, **config), {"chat": "text-generation"}).load()


LONG_ROPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "original_max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 64, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config"), [("GPT2", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}), ("Phi3", LONG_ROPE)]
)
def test_a_nearly_full_row_may_stand_beside_a_long_feed(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    """The padding behind the row's two tokens ends at 90, beyond the 64 positions of the network."""
    import torch

    network = DecoderNetwork(tiny_decoder(tmp_path / name, name, **config), where="models.own", precision="fp32")
    network.load("cpu")
    read, feeds = [range(10, 70), range(0)], [Feed([7, 8], (1,)), Feed(range(20, 50), (29,))]

    def run(rows: Sequence[int]) -> list[torch.Tensor]:
        block = Block(network.shape)
        for row in rows:
            own = Block(network.shape)
            own.add(network.shape.empty())
            if read[row]:
                network.run(own, [Feed(read[row])])
            block.add(own.kept(0))
        return network.run(block, [feeds[row] for row in rows])

    for row, beside in enumerate(run([0, 1])):
        torch.testing.assert_close(beside, run([row])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_smollm2_answers(pulled_chat: Pulled) -> None:
    """Real weights: eight questions together, each answered as transformers answers it alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    served = Served(pulled_chat.folder, {"chat": "text-generation", "mood": MOOD}).load()
    questions = ["What is the capital of France?", "Name three fruits.", "Who wrote Hamlet?"]
    given = [MessagesInput((Message("user", question),)) for question in questions]
    answers = served.ask("chat", given, max_new_tokens=12)

    theirs = AutoModelForCausalLM.from_pretrained(pulled_chat.folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(pulled_chat.folder)
    for question, answer in zip(questions, answers, strict=True):
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert answer["text"] == tokenizer.decode(generated(theirs, ids, 12), skip_special_tokens=True)
    assert answers[0]["text"] == "The capital of France is Paris."
    moods = served.ask("mood", ["I love it, thank you!", "This is terrible and I hate it."])
    assert [mood[0]["label"] for mood in moods] == ["positive", "negative"]


MOOD = {
    "kind": "prompted-classification",
    "prompt": "Is this review positive or negative? Answer with one word.\n\nReview: {input}",
    "labels": ["positive", "negative"],
}
