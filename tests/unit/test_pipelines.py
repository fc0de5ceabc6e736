"""Pipelines before anything is sent: what is refused, which items come due when, what feeds what."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from producers import InvalidInput, Pipeline, UnknownTask
from producers.client.pipelines.tree import Grown, Tree
from producers.wire.catalogue import KINDS, Catalogue, Task
from producers.wire.messages import Message, MessagesInput, QuestionInput
from producers.wire.pipelines.plan import Plan, Rows
from producers.wire.pipelines.selectors import SELECTORS, PromptOptions, chosen, derived, prompted, reads
from results_store.records import Result, ResultState
from results_store.sql.item_numbering import MAX_DEPTH, MAX_PARTS, TREE_SPAN, numbers_of, root_of, tree_number

TASKS = {
    "sentiment": "text-classification",
    "topic": "text-classification",
    "vector": "feature-extraction",
    "names": "token-classification",
    "short": "summarization",
    "answer": "question-answering",
    "things": "object-detection",
    "animal": "image-classification",
    "find": "passage-retrieval",
    "chat": "text-generation",
}
CATALOGUE = Catalogue({name: Task(name, KINDS[kind], f"m-{name}", "") for name, kind in TASKS.items()})

PROMPT = {"template": "{texts} {input}"}
LABEL = [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]


def box(label: str, score: float = 0.9) -> dict[str, Any]:
    return {"label": label, "score": score, "box": {"xmin": 0, "ymin": 0, "xmax": 4, "ymax": 4}}


def step(name: str = "b", task: str = "topic", of: Any = "a", **more: Any) -> Pipeline:
    return Pipeline().step("a", task="sentiment").step(name, task=task, of=of, **more)


# --- what is refused ---


@pytest.mark.parametrize(
    ("pipeline", "field", "problem"),
    [
        (Pipeline(), "steps", "are none"),
        (step(of="c"), "steps.b.of", "no step 'c'"),
        (step(of=["a", "a"]), "steps.b.of", "names a step twice"),
        (step(task="topick"), "steps.b.task", "no task 'topick'"),
        (step(params={"top_q": 1}), "steps.b.params", "top_q"),
        (step(take="pick"), "steps.b.take", "no selector 'pick'"),
        (step(take="crop"), "steps.b.take", "'crop' needs boxes"),
        (step(take="text", options={"labels": "cat"}), "steps.b.options", "array"),
        (step(take="text", options={"template": "no hole"}), "steps.b.options", "{}"),
        (step(task="animal"), "steps.b.take", "nothing in text-classification is image"),
        (step(task="answer", take="text"), "steps.b.take", "gives text, but 'answer' reads question"),
        (step(task="answer", take="question"), "steps.b.options", "question"),
        (step(task="chat", take="prompt", options={"template": "{input}"}), "steps.b.options", "{texts}"),
        (step(task="topic", take="prompt", options=PROMPT), "steps.b.take", "gives prompt"),
        (
            Pipeline().step("a", task="answer").step("b", task="chat", of="a", take="prompt", options=PROMPT),
            "steps.b.take",
            "needs an input that is text",
        ),
        (step(take="gather"), "steps.b.take", "cannot gather: there is only one 'a'"),
        (Pipeline().step("a", task="topic", take="text"), "steps.a.of", "is missing"),
        (Pipeline().step("a", task="topic").step("b", task="animal"), "steps.b", "as image"),
        (Pipeline().step("a", task="topic").step("b", task="topic"), "steps.b", "as 'a' does"),
        (
            Pipeline().step("v", task="vector").step("b", task="topic", of="v", take="text"),
            "steps.b.take",
            "needs text",
        ),
    ],
)
def test_what_cannot_be_is_named_with_its_step(pipeline: Pipeline, field: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        pipeline.check(CATALOGUE)
    assert raised.value.field.startswith(field)
    assert problem in str(raised.value)


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UnknownTask, match="did you mean 'topic'"):
        step(task="topick").check(CATALOGUE)


def test_a_circle_is_shown() -> None:
    circle = Pipeline().step("a", task="topic", of="c").step("b", task="topic", of="a").step("c", task="topic", of="b")
    with pytest.raises(InvalidInput, match=r"form a cycle: .*a.*->.*"):
        circle.check(CATALOGUE)


def test_steps_may_be_added_in_any_order() -> None:
    plan = Pipeline().step("late", task="topic", of="early").step("early", task="sentiment").check(CATALOGUE)
    assert [step.name for step in plan.steps] == ["early", "late"]


def test_parts_of_different_lists_are_not_joined_and_lists_not_nested_without_end() -> None:
    twice = Pipeline().step("a", task="names").step("b", task="names", of="a", take="each")
    with pytest.raises(InvalidInput, match="parts of different lists"):
        Pipeline().step("a", task="names").step("b", task="topic", of="a", take="each").step(
            "c", task="sentiment", of="a", take="each"
        ).step("d", task="topic", of=["b", "c"]).check(CATALOGUE)
    twice.step("c", task="names", of="b", take="each").check(CATALOGUE)
    with pytest.raises(InvalidInput, match="list within 2 lists"):
        twice.step("d", task="topic", of="c", take="each").check(CATALOGUE)


def test_options_are_kept_as_they_were_checked() -> None:
    """A decimal was checked as a number and kept as a text, and all envelopes of the job were given up."""
    options, params = {"min_score": Decimal("0.5"), "labels": ("a",)}, {"top_k": np.int64(2)}
    two = Pipeline().step("a", task="sentiment").step("b", task="topic", of="a", options=options, params=params)
    kept = two.check(Catalogue.builtin()).as_json()["steps"][1]
    assert (kept["options"], kept["params"]) == ({"min_score": 0.5, "labels": ["a"]}, {"top_k": 2})
    for field in ("options", "params"):
        with pytest.raises(InvalidInput, match=rf"^steps\.c\.{field}: must be a mapping, not list"):
            two.step("c", task="topic", of="a", **{field: [1]})  # type: ignore[arg-type]
        for values in ({"template": "a\0{}"}, {"labels": ["a", "\0"]}, {"a\0": 1}):
            with pytest.raises(InvalidInput, match=rf"^steps\.c\.{field}: has NUL"):
                two.step("c", task="topic", of="a", **{field: values})  # type: ignore[arg-type]
    for name in ("", "a\0", "x" * 256, None):
        with pytest.raises(InvalidInput, match=r"^name: must be a name for the step"):
            two.step(name, task="topic", of="a")  # type: ignore[arg-type]


def test_two_steps_cannot_have_one_name() -> None:
    with pytest.raises(InvalidInput, match=r"steps\.a: exists already"):
        Pipeline().step("a", task="topic").step("a", task="topic")


# --- numbers ---


def test_every_item_of_every_tree_has_a_number_of_its_own() -> None:
    """And numbers below 2**53, which JSON readers keep exactly, for a quarter of a thousand million inputs."""
    places = [(r, p, s) for r in (0, 1, 7) for p in ((), (1,), (0, 1), (1023, 1023)) for s in (0, 1, 31)]
    numbers = {tree_number(*place) for place in places}
    assert len(numbers) == len(places)
    assert all(root_of(tree_number(*place)) == place[0] for place in places)
    assert all(numbers_of(tree_number(*place)) == ((*place[1], 0, 0)[:MAX_DEPTH], place[2]) for place in places)
    assert tree_number(2**28 - 1, (MAX_PARTS - 1, MAX_PARTS - 1), 31) == 2**53 - 1


# --- which items come due when ---

#: detect -> crop each -> classify, the labels of all parts as one text -> sentiment, beside a plain branch of two.
WIDE = (
    Pipeline()
    .step("things", task="things")
    .step("animal", task="animal")
    .step("each", task="animal", of="things")
    .step("all", task="sentiment", of="each", take="gather")
    .step("both", task="topic", of=["all", "animal"])
)


def row(plan: Plan, name: str, parts: tuple[int, ...] = (), root: int = 0, **changes: Any) -> Result:
    own = next(step for step in plan.steps if step.name == name)
    output = [box("cat"), box("dog"), box("cow")] if own.task == "things" else LABEL
    given: dict[str, Any] = {"state": ResultState.SUCCEEDED, "output": output, "envelope": "e", "job": "j"}
    return Result(seq=tree_number(root, parts, plan.numbers[name]), task=own.task, **{**given, **changes})


def keyed(*rows: Result) -> Rows:
    return {(one.seq, one.task): one for one in rows}


def due(plan: Plan, before: list[Result], *new: Result) -> list[tuple[str, tuple[int, ...]]]:
    fresh = keyed(*new)
    return [(node.step.name, node.parts) for node in plan.due(0, {**keyed(*before), **fresh}, fresh)]


def test_each_item_comes_due_once_whatever_the_order_and_the_company() -> None:
    """Results arrive in any order and in groups of any size, as workers commit them: the whole tree is made, each
    item once.
    """
    plan = WIDE.check(CATALOGUE)
    for seed in range(60):
        rng = random.Random(seed)
        waiting: list[Result] = [row(plan, "things"), row(plan, "animal")]
        stored: list[Result] = []
        made: list[tuple[str, tuple[int, ...]]] = []
        while waiting:
            rng.shuffle(waiting)
            size = rng.randint(1, len(waiting))
            new, waiting = waiting[:size], waiting[size:]
            found = due(plan, stored, *new)
            stored += new
            made += found
            waiting += [row(plan, name, parts) for name, parts in found]
        assert sorted(made) == [("all", ()), ("both", ()), ("each", (0,)), ("each", (1,)), ("each", (2,))]
        assert all(node.succeeded for node in plan.unfold(0, keyed(*stored)))


def test_what_was_there_before_brings_nothing_a_second_time() -> None:
    plan = WIDE.check(CATALOGUE)
    before = [row(plan, "things")]
    assert due(plan, before) == []
    assert due(plan, before, row(plan, "animal")) == []


def test_a_part_that_fails_holds_up_only_what_needs_it() -> None:
    plan = WIDE.check(CATALOGUE)
    broken = row(
        plan, "each", (1,), state=ResultState.FAILED, output=None, error={"kind": "ModelError", "message": "no"}
    )
    rows = [row(plan, "things"), row(plan, "animal"), row(plan, "each", (0,)), row(plan, "each", (2,))]
    assert due(plan, rows, broken) == []
    tree = tree_of(plan, [*rows, broken])
    assert [branch.state for branch in tree.of("each")] == ["succeeded", "failed", "succeeded"]
    assert tree.of("all")[0].reason == tree.of("both")[0].reason == "'each'[1] failed: ModelError: no"
    assert tree.of("all")[0].state == "skipped"
    assert not tree.ok
    # replayed, it succeeds: now the rest follows
    assert due(plan, rows, row(plan, "each", (1,))) == [("all", ())]


def tree_of(plan: Plan, rows: list[Result], *, cancelled: bool = False) -> Tree:
    grown = Grown(plan, cancelled=cancelled)
    assert all(grown.add(one) is None for one in sorted(rows, key=lambda one: one.seq))
    tree = grown.last()
    assert tree is not None
    return tree


def test_an_empty_list_skips_what_follows_and_says_so() -> None:
    plan = WIDE.check(CATALOGUE)
    rows = [row(plan, "things", output=[]), row(plan, "animal")]
    assert due(plan, [], *rows) == []
    assert {b.step: b.reason for b in tree_of(plan, rows).branches if b.state == "skipped"} == dict.fromkeys(
        ("each", "all", "both"), "'things' gave nothing for it"
    )


def test_more_parts_than_fit_are_said_to_be_left_out() -> None:
    plan = Pipeline().step("a", task="things").step("b", task="animal", of="a").check(CATALOGUE)
    many = row(plan, "a", output=[box("cat")] * (MAX_PARTS + 1))
    assert len(due(plan, [], many)) == MAX_PARTS
    assert tree_of(plan, [many]).of("b")[-1].reason == "'a' gave 1,025 parts; those over 1,024 are left out"


def test_a_tree_that_is_not_whole_says_what_it_waits_for() -> None:
    plan = WIDE.check(CATALOGUE)
    rows = [row(plan, "things"), row(plan, "each", (0,))]
    states = [(branch.step, branch.state) for branch in tree_of(plan, rows).branches]
    assert states.count(("each", "waiting")) == 2
    assert ("all", "waiting") in states
    stopped = tree_of(plan, rows, cancelled=True)
    assert {branch.state for branch in stopped.branches} == {"succeeded", "skipped"}
    assert "cancelled" in stopped.of("both")[0].reason


def test_results_are_told_apart_by_their_inputs() -> None:
    plan = step().check(CATALOGUE)
    rows = [row(plan, name, root=root, key=f"k{root}") for root in (0, 3, 4) for name in ("a", "b")]
    grown = Grown(plan, cancelled=False)
    trees = [tree for tree in (*(grown.add(one) for one in rows), grown.last()) if tree]
    assert [(tree.seq, tree.key, tree.ok) for tree in trees] == [(0, "k0", True), (3, "k3", True), (4, "k4", True)]
    assert rows[2].seq == 3 * TREE_SPAN


# --- selectors ---


@pytest.mark.parametrize(
    ("take", "outputs", "part", "options", "expected"),
    [
        ("text", [{"text": "hello"}], None, {}, "hello"),
        ("text", [LABEL], None, {"template": "about a {}"}, "about a cat"),
        ("each", [[{"word": "Ada"}, {"word": "Bob"}]], 1, {}, "Bob"),
        ("join", [{"text": "one"}, LABEL], None, {"separator": ", "}, "one, cat"),
        ("gather", [LABEL, {"text": " "}, {"text": "x"}], None, {}, "cat x"),
        ("question", [{"text": "Ada ran."}], None, {"question": "Who?"}, QuestionInput("Who?", "Ada ran.")),
    ],
)
def test_selectors_make_inputs(
    take: str, outputs: list[Any], part: int | None, options: dict[str, Any], expected: object
) -> None:
    assert derived(SELECTORS[take], outputs, part, options) == expected


@pytest.mark.parametrize(
    ("take", "output", "options", "expected"),
    [
        ("crop", [box("cat"), box("dog", 0.2), box("cat", 0.3)], {}, [0, 1, 2]),
        ("crop", [box("cat"), box("dog", 0.2), box("cat", 0.3)], {"min_score": 0.25}, [0, 2]),
        ("crop", [box("cat"), box("dog", 0.2)], {"labels": ["dog"]}, [1]),
        (
            "each",
            [{"word": "Ada", "entity_group": "PER"}, {"word": "UN", "entity_group": "ORG"}],
            {"labels": ["ORG"]},
            [1],
        ),
        ("text", LABEL, {"labels": ["dog"]}, []),
        ("text", {"text": " "}, {}, []),
        ("prompt", [{"text": "far", "score": 0.2}], {"template": "{texts} {input}", "min_score": 0.3}, []),
        ("prompt", [], {"template": "{texts} {input}"}, []),
        ("input", LABEL, {"labels": ["cat"]}, [0]),
        ("input", None, {}, [0]),
        ("input", None, {"labels": ["cat"]}, []),
    ],
)
def test_selectors_choose(take: str, output: Any, options: dict[str, Any], expected: list[int]) -> None:
    """The parts keep their numbers, whatever is left out between them."""
    assert chosen(SELECTORS[take], output, options) == expected


def test_a_prompt_is_made_of_an_input_and_the_texts_that_were_found_for_it() -> None:
    """What has braces in it, be it the question or a passage, stays as it is."""
    found = [{"text": "{input}", "score": 0.9}, {"text": "far", "score": 0.2}, {"text": "near", "score": 0.8}]
    options = PromptOptions(template="{texts}\n\nQ: {input}", system="Be brief.", min_score=0.5)
    assert prompted(found, "why {texts}?", options) == MessagesInput(
        (Message("system", "Be brief."), Message("user", "[1] {input}\n[2] near\n\nQ: why {texts}?"))
    )


def test_every_kind_can_be_followed_by_something() -> None:
    """What a selector reads is read off the kinds' own types: a kind that none could read but `input` is an end."""
    readers = {name: {one.name for one in SELECTORS.values() if reads(one, kind)} for name, kind in KINDS.items()}
    assert {"text", "each"} <= readers["text-classification"] & readers["token-classification"]
    assert "text" in readers["summarization"]
    assert "crop" in readers["object-detection"]
    assert readers["feature-extraction"] == {"input"}
