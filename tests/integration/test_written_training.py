"""Recipes of tasks whose answer is written: text to text, and dialogue. Backbones are tiny and of random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

from producers.wire.errors import ConfigurationError
from producers.wire.kinds.generation import TextGenerationParams
from tests import tiny_checkpoints
from tests.integration.test_recipe_training import answers, assert_resumed, served, trained
from tests.serving import answered
from tests.training_checkpoints import TOLERANCE, furthest, last
from workers.training.kinds.labelled_kind import IGNORED
from workers.training.loop import processes, trainer, training_checkpoint
from workers.training.loop.processes import Process
from workers.training.loop.trainer import Work
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.labelled_rows import BadRows
from workers.training.recipes.training_run import RecipeTraining, TrainingCard

WORDS = ("film", "team", "bank", "cup", "year", "man", "woman", "profit", "example")

TRANSLATE = '[tasks.turn]\nkind = "text-to-text"\nprefix = "the "\n'
CHAT = '[tasks.chat]\nkind = "dialogue"\n'
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] + '\n' + message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

TWELVE = "steps = 12\nevaluate_every = 12\ndropout = false\n"


def texts(count: int) -> list[dict[str, Any]]:
    """Return texts of one to seven words, and as targets their last word and the words before it."""
    random = Random(3)
    found = []
    for _ in range(count):
        words = [random.choice(WORDS) for _ in range(random.randint(1, 7))]
        found.append({"text": " ".join(words), "target": " ".join(["good", words[-1], *words[:-1]])})
    return found


def dialogues(count: int) -> list[dict[str, Any]]:
    """Return dialogues of one or two questions, whose answers begin with the question's last word."""
    random = Random(4)
    found = []
    for number in range(count):
        messages = [{"role": "system", "content": "be fine"}] if number % 2 else []
        for _ in range(random.randint(1, 2)):
            word = random.choice(WORDS)
            messages.append({"role": "user", "content": f"the {word}"})
            messages.append({"role": "assistant", "content": " ".join([word] * random.randint(1, 3))})
        found.append({"messages": messages})
    return found


def recipe(folder: Path, tasks: str, train: str, rows: list[dict[str, Any]], name: str = "out") -> Path:
    """Write rows, and a recipe of a backbone that lies beside them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / f"{name}.toml"
    path.write_text(
        f'[train]\nbackbone = {{ path = "{folder}/backbone" }}\nout = "{folder}/{name}"\nrows = 16\nrate = 1e-3\n'
        f'{train}\n[data]\ntrain = "rows.jsonl"\n{tasks}',
        encoding="utf-8",
    )
    return path


def backbone(folder: Path, maker: str) -> None:
    if maker == "t5":
        tiny_checkpoints.t5(folder / "backbone")
    elif maker == "new t5":
        # the others have large weights, by which T5, whose attention is not scaled, makes 0.005 of rounding in 12 steps
        config = transformers.AutoConfig.from_pretrained(tiny_checkpoints.t5(folder / "backbone"))
        torch.manual_seed(1)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "backbone")
    elif maker == "bart":
        tiny_checkpoints.bart(folder / "backbone", "BartForConditionalGeneration")
    else:
        tiny_checkpoints.llama(folder / "backbone", template=TEMPLATE)


def judged(training: RecipeTraining, card: TrainingCard) -> tuple[Any, list[Any]]:
    """Return the trainer's network with its best weights, and its answers to the test rows."""
    subject = training_run.subject_of(training)
    network: Any = subject.build(card.recipe)
    training_checkpoint.load_best(training.out, network)
    return network, [answer for part in training_run.answers(subject, network) for _, answer, _ in part]


@pytest.mark.parametrize("maker", ["t5", pytest.param("bart", marks=pytest.mark.training)])
def test_a_text_to_text_is_served_as_it_was_trained(tmp_path: Path, maker: str) -> None:
    """The served answers are those of the trainer's model, and of transformers' own `generate`."""
    backbone(tmp_path, maker)
    training, card = trained(recipe(tmp_path, TRANSLATE, "steps = 2\nevaluate_every = 2", texts(60)))
    assert list(card.tasks["turn"].scores) == ["chrf", "exact"]
    model = served(training)
    found = answers(model, training, "turn")
    _, expected = judged(training, card)
    assert sorted(answer["text"] for answer in found) == sorted(answer["text"] for answer in expected)
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(training.out / "backbone").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(training.out / "backbone")
    for row, answer in zip(training.rows.test, found, strict=True):
        inputs = tokenizer(f"the {row.columns['text']}", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        [tokens] = network.generate(**inputs, do_sample=False)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == answer["text"]
        assert len(tokens) <= 1 + network.generation_config.max_new_tokens


def test_a_dialogue_is_served_as_it_was_trained(tmp_path: Path) -> None:
    """LoRA by default; a worker answers what transformers' own `generate` answers."""
    backbone(tmp_path, "llama")
    training, card = trained(recipe(tmp_path, CHAT, "steps = 2\nevaluate_every = 2", dialogues(60)))
    assert training.recipe.train.sharing == "lora"
    assert list(card.tasks["chat"].scores) == ["token_accuracy", "perplexity"]
    network, _ = judged(training, card)
    ours = training_run.subject_of(training).merged(network)
    network = transformers.AutoModelForCausalLM.from_pretrained(training.out / "backbone").eval()
    before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").state_dict()
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in ours.state_dict().items())
    assert not all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(training.out / "backbone")
    kind, model = training.rows.tasks["chat"], served(training)
    contents = [kind.content(row.columns, "") for row in training.rows.test]
    params = {"chat": TextGenerationParams(max_new_tokens=8)}
    for content, answer in zip(contents, answered(model, [(one, params) for one in contents]), strict=True):
        messages = [{"role": message.role, "content": message.content} for message in content.messages]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        [tokens] = network.generate(**inputs, do_sample=False, max_new_tokens=8)
        text = tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer["chat"]["text"] == text


@pytest.mark.parametrize(("maker", "task"), [("t5", TRANSLATE), ("bart", TRANSLATE), ("llama", CHAT)])
def test_losses_are_those_of_transformers(tmp_path: Path, maker: str, task: str) -> None:
    """The mean over all label tokens of a batch, of texts of different lengths."""
    backbone(tmp_path, maker)
    training = training_run.prepare(recipe_file.load(recipe(tmp_path, task, "", texts_of(maker)(40))), resume=False)
    subject = training_run.subject_of(training)
    network: Any = subject.build(training_run.loop_recipe(training)).eval()
    examples = subject.examples("train", "cpu")
    batch = examples.batch(examples.places()[:6])
    inputs = {name.removeprefix("input/"): tensor for name, tensor in batch.items() if name.startswith("input/")}
    with torch.no_grad():
        [[count, loss]] = network(**batch)[1].tolist()
        assert loss / count == pytest.approx(float(network.encoder.backbone(**inputs).loss), rel=1e-5)
    assert len({*(inputs["labels"] != IGNORED).sum(1).tolist()}) > 1


def texts_of(maker: str) -> Any:
    return dialogues if maker == "llama" else texts


def test_only_answers_are_learnt(tmp_path: Path) -> None:
    """With the token that ends them, and without those of weight 0."""
    backbone(tmp_path, "llama")
    told = [
        {"role": "user", "content": "a film"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": [{"type": "text", "text": "a team"}]},
        {"role": "assistant", "content": "yes"},
    ]
    path = recipe(tmp_path, CHAT, "", [*dialogues(20), *({"messages": told}, {"messages": json.dumps(told)})])
    training = training_run.prepare(recipe_file.load(path), resume=False)
    subject = training_run.subject_of(training)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "backbone")
    for part in training.rows.train, training.rows.validation, training.rows.test:
        for row in part:
            read = subject.read(row, training.tasks)
            messages = row.columns["messages"]
            messages = json.loads(messages) if isinstance(messages, str) else messages
            ids, labels = read.arrays["chat"], read.targets["chat"][0]
            assert list(ids) == tokenizer.apply_chat_template(_plain(messages), return_dict=False)
            learnt = [one["content"] for one in messages if one["role"] == "assistant" and one.get("weight", 1)]
            assert tokenizer.decode(labels[labels != IGNORED]) == "".join(f"{text}</s>" for text in learnt)


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return messages as templates read them."""
    texts_ = (one["content"] if isinstance(one["content"], str) else one["content"][0]["text"] for one in messages)
    return [{"role": one["role"], "content": text} for one, text in zip(messages, texts_, strict=True)]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    """By file, line and field."""
    backbone(tmp_path, "llama")
    hello = {"role": "user", "content": "hello"}
    bad = [
        {"messages": [hello]},
        {"messages": [hello, {"role": "assistant", "content": ""}]},
        {"messages": [hello, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        {"messages": [hello, {"role": "assistant", "content": "x", "weight": 2}]},
        {"messages": "hello"},
        {"messages": ["hello"]},
    ]
    with pytest.raises(BadRows) as caught:
        training_run.prepare(recipe_file.load(recipe(tmp_path, CHAT, "", [*dialogues(9), *bad])), resume=False)
    file = tmp_path / "rows.jsonl"
    for line, problem in zip(
        caught.value.lines,
        (
            ":10: messages: has no message of the assistant",
            ":11: messages[1].content: is empty or no text",
            ":12: messages[1]: has 'tool_calls', which is not trained",
            ":13: messages[1].weight: is 2",
            ":14: messages: is not JSON",
            ":15: messages[0]: is 'hello', not a message",
        ),
        strict=True,
    ):
        assert str(file) in line
        assert problem in line


@pytest.mark.parametrize(
    ("maker", "task", "train", "message"),
    [
        ("llama", TRANSLATE, "", "is no encoder with a decoder, which text-to-text needs"),
        ("t5", CHAT, "", "is an encoder with a decoder, and dialogue needs a decoder"),
        ("t5", TRANSLATE, 'sharing = "frozen"', "trains nothing, since no task has a head"),
        ("t5", TRANSLATE + CHAT, "", "which cannot share a backbone; make two recipes"),
        ("t5", TRANSLATE + 'label = "text"\nfusion = ["turn"]', "", "names the task itself"),
        ("plain", CHAT, "", "has no chat template"),
        ("other", CHAT, "", "does not go on from the prompt"),
        ("endless", CHAT, "", "ends an answer with no token that ends generation"),
    ],
)
def test_the_impossible_is_refused(tmp_path: Path, maker: str, task: str, train: str, message: str) -> None:
    if maker == "plain":
        tiny_checkpoints.llama(tmp_path / "backbone", template=None)
    elif maker == "other":
        tiny_checkpoints.llama(tmp_path / "backbone")
    elif maker == "endless":
        tiny_checkpoints.llama(tmp_path / "backbone", template=TEMPLATE.replace("</s>", ""))
    else:
        backbone(tmp_path, maker)
    rows = [one | other for one, other in zip(texts(20), dialogues(20), strict=True)]
    path = recipe(tmp_path, task, train, rows)
    with pytest.raises(ConfigurationError, match=message):
        trained(path)


SPLITS = {
    "new t5": (TRANSLATE, "", ("rows", "states")),
    "bart": (TRANSLATE, "", ("rows", "layers", "states")),
    "llama": (CHAT, 'sharing = "full"\n', ("rows", "layers", "states", "stages")),
    "lora": (CHAT, "", ("rows", "states", "stages")),
}


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Work]:
    """Trainings by this very process, whose shares of a step have different numbers of tokens."""
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, (task, train, _) in SPLITS.items():
        folder = tmp_path_factory.mktemp(name)
        backbone(folder, "llama" if name == "lora" else name)
        path = recipe(folder, task, train + TWELVE, texts_of("t5" if task is TRANSLATE else "llama")(100))
        training = training_run.prepare(recipe_file.load(path), resume=False)
        subject = training_run.subject_of(training)
        found[name] = Work(corpus=subject, recipe=training_run.loop_recipe(training), out=training.out)
        trainer.train(Process(), found[name])
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def together(works: dict[str, Work], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same trainings by two processes."""
    out = tmp_path_factory.mktemp("together")
    each = [(name, split) for name, (*_, splits) in SPLITS.items() for split in splits]
    shared = [replace(works[name], out=out / f"{name}-{split}", split=split) for name, split in each]
    shared.append(replace(works["new t5"], out=out / "accumulated", accumulate=3))
    processes.run(one_by_one, shared, count=2, device="cpu")
    return out


def one_by_one(process: Process, works: Sequence[Work]) -> None:
    """In one group, as starting processes takes longer than these trainings."""
    for work in works:
        trainer.train(process, work)


@pytest.mark.training
@pytest.mark.parametrize("name", SPLITS)
def test_two_processes_come_to_what_one_comes_to(name: str, works: dict[str, Work], together: Path) -> None:
    """By every split that the kind has, in weights and scores."""
    expected, alone = last(works[name].out), list(trainer.read_log(works[name].out))
    found = {split: furthest(expected, last(together / f"{name}-{split}")) for split in SPLITS[name][2]}
    assert max(found.values())[0] < TOLERANCE, found
    for split in SPLITS[name][2]:
        lines = list(trainer.read_log(together / f"{name}-{split}"))
        assert lines[-1].accuracies == pytest.approx(alone[-1].accuracies, abs=1e-3)
        losses, others = ([loss for line in own for loss in line.losses] for own in (alone, lines))
        assert losses == pytest.approx(others, rel=1e-4)


@pytest.mark.training
def test_micro_batches_come_to_what_one_batch_comes_to(works: dict[str, Work], together: Path) -> None:
    assert furthest(last(works["new t5"].out), last(together / "accumulated"))[0] < TOLERANCE


@pytest.mark.training
@pytest.mark.parametrize(("maker", "task"), [("t5", TRANSLATE), ("llama", CHAT)])
def test_a_killed_training_comes_to_the_same(tmp_path: Path, maker: str, task: str) -> None:
    """SIGKILL between two checkpoints, with dropout."""
    backbone(tmp_path, maker)
    train = "steps = 60\nevaluate_every = 20\ncheckpoint_every = 10"
    assert_resumed(*(recipe(tmp_path, task, train, texts_of(maker)(100), name) for name in ("whole", "killed")))


@pytest.mark.training
@pytest.mark.parametrize(("maker", "sharing"), [("t5", "full"), ("bart", "lora"), ("llama", "full"), ("llama", "lora")])
def test_a_model_learns_to_write(tmp_path: Path, maker: str, sharing: str) -> None:
    """An answer that is always the same."""
    backbone(tmp_path, maker)
    rows = [row | {"target": "good film"} for row in texts(60)]
    for row, other in zip(rows, dialogues(60), strict=True):
        said = [dict(one, content="good") if one["role"] == "assistant" else one for one in other["messages"]]
        row["messages"] = said
    train = f"steps = 80\nevaluate_every = 40\nsharing = {sharing!r}"
    path = recipe(tmp_path, CHAT if maker == "llama" else TRANSLATE, train, rows)
    path.write_text(path.read_text().replace("rate = 1e-3", "rate = 2e-2"))
    training, card = trained(path)
    [task] = card.tasks.values()
    assert next(iter(task.scores.values())) > 0.9, task.scores
    if maker != "llama":
        assert {answer["text"] for answer in answers(served(training), training, "turn")} == {"good film"}
