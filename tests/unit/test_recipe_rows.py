"""A recipe and its rows: every fault is named by its place before a step is taken."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from msgspec.structs import replace

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.training.kinds.span_kinds import LabelledSpan
from workers.training.recipes import labelled_rows, recipe_file
from workers.training.recipes.labelled_rows import BadRows, LabelledRows

TOPIC = '[tasks.topic]\nkind = "classification"\nlabel = "topic"\n'


def written(folder: Path, text: str, **files: Sequence[Mapping[str, Any]]) -> Path:
    """Write a recipe, and its files as JSON Lines."""
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "reviews.toml"
    path.write_text(text if "[data]" in text else f'[data]\ntrain = "rows.jsonl"\n{text}', encoding="utf-8")
    return path


def read(folder: Path, text: str, **files: Sequence[Mapping[str, Any]]) -> LabelledRows:
    return labelled_rows.read(recipe_file.load(written(folder, text, **files)))


def topics(count: int) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "topic": "ab"[n % 2]} for n in range(count)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[train]\nrow = 3\n" + TOPIC, "train.row: no such setting; did you mean 'rows'?"),
        ("[train]\nrows = 0\n" + TOPIC, "`rows` must be 1 or more"),
        ("[train]\nsharing = 'some'\n" + TOPIC, "one of full, lora, frozen"),
        ("[training]\n" + TOPIC, "training: no such table; did you mean 'train'?"),
        ("", "tasks: has no task; add one"),
        ("[tasks.a]\nlabel = 'x'\n", "tasks.a.kind: is missing"),
        ("[tasks.a]\nkind = 'clasification'\n", "'clasification' is not trained; did you mean 'classification'?"),
        ("[tasks.a]\nkind = 'image-generation'\n", "'image-generation' is not trained"),
        (TOPIC + "fusion = ['mood']\n", "tasks.topic.fusion: no task 'mood'"),
        (TOPIC + "head = 'transformers'\nfusion = ['b']\n[tasks.b]\nkind = 'regression'\n", "has no attention"),
        ("[tasks.a]\nkind = 'token-labels'\nhead = 'attention'\n", "cannot be 'attention'; it can be transformers"),
        ("[tasks.a]\nkind = 'answers'\ninput = 'text'\n", "must name 2 columns, for question and context"),
        ("[tasks.a]\nkind = 'regression'\nscale = 5\n", "tasks.a.scale: regression has no such setting"),
        ("[train]\nweights = { other = 1.0 }\n" + TOPIC, "train.weights: no task 'other'"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path: Path, text: str, problem: str) -> None:
    """By its setting, with a remedy."""
    with pytest.raises((ConfigurationError, ValueError)) as error:
        read(tmp_path, text, rows=topics(20))
    assert problem in str(error.value)


def test_bad_rows_are_named_by_file_line_and_field(tmp_path: Path) -> None:
    """All at once, so that a user mends a file in one go."""
    rows: list[dict[str, Any]] = topics(20)
    rows[2]["stars"] = "many"
    rows[4]["text"] = " "
    del rows[6]["text"]
    rows[8]["topic"] = ["a", "b"]
    with pytest.raises(BadRows) as error:
        read(tmp_path, TOPIC + '[tasks.stars]\nkind = "regression"\nlabel = "stars"\n', rows=rows)
    lines = str(error.value).splitlines()
    assert [line.rpartition("rows.jsonl")[2].partition("; ")[0] for line in lines] == [
        ":3: stars: is 'many', not a number",
        ":5: text: is empty",
        ":7: has no 'text'",
        ":9: topic: is list, not a label",
    ]


def test_rows_may_have_labels_of_some_tasks(tmp_path: Path) -> None:
    """A missing label is masked, and a row without any is left out."""
    rows = [{"text": f"{n}", "topic": "ab"[n % 2], "stars": n if n % 3 else None} for n in range(60)]
    text = TOPIC + '[tasks.stars]\nkind = "regression"\nlabel = "stars"\n'
    found = read(tmp_path, text, rows=[*rows, {"text": "bare", "topic": ""}])
    assert found.unlabelled == 1
    assert [len(part) for part in (found.train, found.validation, found.test)] == [49, 5, 6]
    whole = [*found.train, *found.validation, *found.test]
    assert sum("stars" in row.labels for row in whole) == 40
    assert sum("topic" in row.labels for row in whole) == 60


def test_equal_texts_are_on_one_side(tmp_path: Path) -> None:
    """A copy of a training text would be a gift in the test part."""
    rows = [{"text": f"{n % 30}", "topic": "ab"[n % 2]} for n in range(120)]
    found = read(tmp_path, TOPIC, rows=rows)
    parts = [{row.columns["text"] for row in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, parts)) == 30


def test_equal_inputs_of_a_task_are_on_one_side(tmp_path: Path) -> None:
    """Also if another task reads another text of the row: of pairs, each text comes in two rows."""
    rows = [{"text": f"{n // 2}", "title": f"{(n + 1) // 2 % 60}", "topic": "ab"[n % 2]} for n in range(120) if n % 6]
    more = [{"text": f"only {n}", "title": "same", "topic": "ab"[n % 2]} for n in range(60)]
    title = '[tasks.about]\nkind = "classification"\ninput = "title"\nlabel = "mood"\n'
    labelled = [row | {"mood": row["topic"]} for row in rows]
    found = read(tmp_path, TOPIC + title, rows=[*labelled, *more])
    parts = (found.train, found.validation, found.test)
    assert min(len(part) for part in parts) >= 12
    for task, column in (("topic", "text"), ("about", "title")):
        texts = [{row.columns[column] for row in part if task in row.labels} for part in parts]
        assert sum(map(len, texts)) == len(set().union(*texts))


def test_rows_that_are_all_joined_are_not_parted(tmp_path: Path) -> None:
    """A file of its own for each part is the way out, and the message says so."""
    rows = [{"text": f"{n // 2}", "title": f"{(n + 1) // 2 % 60}", "topic": "ab"[n % 2]} for n in range(120)]
    title = '[tasks.about]\nkind = "classification"\ninput = "title"\nlabel = "topic"\n'
    with pytest.raises(
        ConfigurationError, match=r"data\.validation: has no row .*; add some, or name files of its own"
    ):
        read(tmp_path, TOPIC + title, rows=rows)


def test_a_label_that_training_lacks_is_an_error(tmp_path: Path) -> None:
    """Such a row could only be answered wrong."""
    text = '[data]\ntrain = "rows.jsonl"\nvalidation = "more.jsonl"\n' + TOPIC
    with pytest.raises(BadRows, match=r"more.jsonl:1: topic: is 'c', a label that no training row has"):
        read(tmp_path, text, rows=topics(20), more=[{"text": "x", "topic": "c"}])


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Else all its labels would count as missing."""
    with pytest.raises(ConfigurationError, match="column 'topic'; columns there: label, text"):
        read(tmp_path, TOPIC, rows=[{"text": "x", "label": "a"}])


def test_numbers_count_in_the_named_labels(tmp_path: Path) -> None:
    """Data sets often have numbers, and answers should have names."""
    rows = [{"text": f"{n}", "topic": n % 2 if n < 10 else str(n % 2)} for n in range(20)]
    found = read(tmp_path, TOPIC + 'labels = ["no", "yes"]\n', rows=rows)
    assert found.tasks["topic"].labels == ("no", "yes")
    assert {row.labels["topic"] for row in found.train} == {"no", "yes"}


def test_files_of_every_format_come_to_the_same_rows(tmp_path: Path) -> None:
    """A CSV has only texts, and Parquet has lists and numbers."""
    rows = [{"text": f"text {n}", "about": ["x", "y"][: n % 3], "stars": n / 2} for n in range(40)]
    tasks = (
        '[tasks.about]\nkind = "multi-label"\nlabel = "about"\n[tasks.stars]\nkind = "regression"\nlabel = "stars"\n'
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"about": ";".join(row["about"]) or "[]"} for row in rows)
    found = [
        labelled_rows.read(recipe_file.load(written(tmp_path, f'[data]\ntrain = "rows.{form}"\n{tasks}', rows=rows)))
        for form in ("jsonl", "csv", "parquet")
    ]
    labels = [{str(row.columns["text"]): row.labels for row in one.train} for one in found]
    assert labels[0] == labels[1] == labels[2]
    assert found[0].tasks["about"].labels == ("x", "y")


@pytest.mark.parametrize(
    ("row", "spans"),
    [
        ({"text": "in Paris", "entities": [{"start": 3, "end": 8, "label": "LOC"}]}, ((3, 8, "LOC"),)),
        ({"text": ["New", "York", "is"], "entities": ["B-LOC", "I-LOC", "O"]}, ((0, 8, "LOC"),)),
        ({"text": ["a", "b", "c"], "entities": ["X", "X", "Y"]}, ((0, 3, "X"), (4, 5, "Y"))),
        ({"text": ["a", "b"], "entities": ["B-X", "B-X"]}, ((0, 1, "X"), (2, 3, "X"))),
        ({"text": [*"abcd"], "entities": ["B-X", "E-X", "S-X", "S-Y"]}, ((0, 3, "X"), (4, 5, "X"), (6, 7, "Y"))),
        ({"text": [*"abcde"], "entities": ["U-X", "B-X", "I-X", "L-X", "O"]}, ((0, 1, "X"), (2, 7, "X"))),
    ],
)
def test_entities_are_read_in_both_forms(tmp_path: Path, row: dict[str, Any], spans: tuple[Any, ...]) -> None:
    """Characters, and a tag for each word."""
    [kind] = labelled_rows.tasks_of(
        recipe_file.load(written(tmp_path, '[tasks.names]\nkind = "token-labels"\n'))
    ).values()
    assert kind.label(row, "here") == tuple(LabelledSpan(*span) for span in spans)


@pytest.mark.parametrize("tag", ["", " ", "B-", "E-"])
def test_a_tag_without_a_type_is_named(tmp_path: Path, tag: str) -> None:
    """It would be an entity without a name."""
    path = written(tmp_path, '[tasks.names]\nkind = "token-labels"\n')
    [kind] = labelled_rows.tasks_of(recipe_file.load(path)).values()
    with pytest.raises(InvalidInput, match=f"here: entities: has the tag '{tag}', without a type; write O"):
        kind.label({"text": ["a", "b"], "entities": ["O", tag]}, "here")


def test_answers_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    """A text that is there twice needs its place; SQuAD's form has it."""
    [kind] = labelled_rows.tasks_of(recipe_file.load(written(tmp_path, '[tasks.where]\nkind = "answers"\n'))).values()
    row = {"question": "who?", "context": "Tom and Tom"}
    squad = {"text": ["Tom"], "answer_start": [8]}
    assert kind.label(row | {"answer": squad}, "here") == ((8, 11, "Tom"),)
    assert kind.label(row | {"answer": {"text": [], "answer_start": []}}, "here") == ()
    for answer, problem in (("Tom", "2 times"), ({"text": "Tom", "start": 1}, "not at character 1"), ("Ann", "not in")):
        with pytest.raises(ValueError, match=problem):
            kind.label(row | {"answer": answer}, "here")


def test_a_recipe_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths count from its folder."""
    path = written(tmp_path, TOPIC, rows=topics(20))
    monkeypatch.chdir("/")
    recipe = recipe_file.load(path)
    assert recipe.out == tmp_path / "reviews"
    assert replace(recipe, train=replace(recipe.train, out="/x/y")).name == "y"
    assert len(labelled_rows.read(recipe).train) > 0
