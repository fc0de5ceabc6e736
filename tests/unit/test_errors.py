"""Errors: one root, and each reaches another process as it is."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import producers
import results_store
import workers
from producers.wire.errors import ArgosyError, InvalidInput, ItemFailed, Overloaded, UnknownTask

_DEFINES = re.compile(
    r"^class \w+\(.*(ArgosyError|StoreError|ConfigurationError|InvalidInput|Overloaded)", re.MULTILINE
)


def _import_errors() -> None:
    """Import the modules that define errors."""
    for package in (producers, results_store, workers):
        folder = Path(package.__path__[0])
        for path in folder.rglob("*.py"):
            if _DEFINES.search(path.read_text(encoding="utf-8")):
                importlib.import_module(".".join(path.relative_to(folder.parent).with_suffix("").parts))


def _every(kind: type[ArgosyError]) -> list[type[ArgosyError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _every(below))]


def _made(kind: type[ArgosyError]) -> ArgosyError:
    """An error of a class, each of its required arguments a text."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    required = [one for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return kind(*(["said"] * max(1, len(required))))


def test_each_error_is_pickled_and_copied() -> None:
    """A pool of processes hangs or breaks on an exception that cannot be unpickled."""
    _import_errors()
    kinds = set(_every(ArgosyError))
    assert {ItemFailed, UnknownTask, producers.StoreUnavailable, producers.KeyConflict} <= kinds
    for kind in kinds:
        error = _made(kind)
        error.add_note("a note")
        error.job = "a job"
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            back = pickle.loads(pickle.dumps(error, protocol))
            assert (type(back), str(back), back.args, vars(back)) == (kind, str(error), error.args, vars(error))
        assert str(copy.copy(error)) == str(error)


def test_an_error_keeps_its_attributes() -> None:
    failed = pickle.loads(pickle.dumps(ItemFailed("topic", "InputTooLarge", "has 600 tokens")))
    assert (failed.task, failed.kind, failed.message) == ("topic", "InputTooLarge", "has 600 tokens")
    assert pickle.loads(pickle.dumps(Overloaded("full", 2.5))).retry_after_s == 2.5


def _fails(_: int) -> None:
    raise ItemFailed("topic", "InputTooLarge", "has 600 tokens")


def test_an_item_that_fails_in_a_pool_of_processes_is_raised_there() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        failed = pool.submit(_fails, 1)
        with pytest.raises(ItemFailed, match="topic: InputTooLarge: has 600 tokens"):
            failed.result()


@pytest.mark.parametrize("name", [name for name in producers.__all__ if isinstance(getattr(producers, name), type)])
def test_every_public_error_is_an_argosy_error(name: str) -> None:
    kind = getattr(producers, name)
    if issubclass(kind, Exception):
        assert issubclass(kind, ArgosyError)
    assert issubclass(InvalidInput, ValueError)
