"""docs/lifecycle.md tells the way of one item as the code goes it."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The most modules that one item may pass on each side.
PRODUCER, WORKER = 9, 20


def tables() -> list[str]:
    """The two tables of the document with their introductions: the producer's side, the worker's side."""
    text = (ROOT / "docs" / "lifecycle.md").read_text()
    section = text.partition("## One item, from `submit` to its row and back\n")[2].partition("\n## ")[0]
    producer, start, worker = section.partition("`Execution.run` in ")
    assert start, "the introduction of the worker's side"
    return [producer, worker]


def modules(table: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"`((?:producers|workers|results_store)\.[\w.]+)`", table)))


def steps(table: str) -> list[str]:
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    return rows[2:]  # behind the head and its rule


def run_method() -> ast.FunctionDef:
    tree = ast.parse((ROOT / "workers" / "envelope" / "execution.py").read_text())
    [run] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "run"]
    return run


def test_every_module_of_the_document_exists() -> None:
    """A reader who follows the table must find each file."""
    for module in (module for table in tables() for module in modules(table)):
        assert find_spec(module), module


def test_one_item_passes_few_modules() -> None:
    """Somebody who looks for a fault reads these and no more."""
    producer, worker = tables()
    assert 0 < len(modules(producer)) <= PRODUCER
    assert 0 < len(modules(worker)) <= WORKER


def test_the_steps_of_an_execution_are_those_of_the_document() -> None:
    """The code and the document say the same words in the same order."""
    calls = [
        (node.lineno, node.func.attr)
        for node in ast.walk(run_method())
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
    ]
    # an envelope that is not to be computed here goes from its claim to the last step: the last call of each step
    # counts
    last = {name: line for line, name in sorted(calls)}
    code = [name.replace("_", " ") for name in sorted(last, key=lambda name: last[name])]
    document = steps(tables()[1])
    assert document[document.index("name") : document.index("tell") + 1] == code


def test_an_execution_reads_at_one_glance() -> None:
    """The life of an envelope is at most twenty lines of code."""
    run = run_method()
    first, last = run.body[1], run.body[-1]  # behind the docstring
    assert last.end_lineno is not None
    assert last.end_lineno - first.lineno + 1 <= 20
