"""`Client` and `AsyncClient` offer the same: what one can do and the other cannot was drift each time it was found."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from producers import (
    AsyncClient,
    AsyncHandle,
    AsyncJob,
    AsyncPipelineJob,
    Client,
    Handle,
    Job,
    Pipeline,
    PipelineJob,
)
from producers.client.options import ItemOptions, ManyOptions, PipelineOptions
from producers.client.text_streams import AsyncTextStream, TextStream

FACES = [
    (Client, AsyncClient),
    (Handle, AsyncHandle),
    (Job, AsyncJob),
    (PipelineJob, AsyncPipelineJob),
    (TextStream, AsyncTextStream),
]

#: Not for callers: the threaded face is made with these.
INNER = {"follow", "pages", "subscribe"}

#: Neither waits.
AT_ONCE = {"forget", "tell"}


def methods(face: type) -> dict[str, Callable[..., Any]]:
    """The public methods, by the names that they have for threads. A property is a method without parameters."""
    found = {}
    for name, member in inspect.getmembers(face):
        method = member.fget if isinstance(member, property) else member
        if inspect.isfunction(method) and not name.startswith("_") and name not in INNER:
            found["close" if name == "aclose" else name] = method
    return found


def parameters(method: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("threaded", "asynchronous"), FACES)
def test_both_faces_have_the_same_methods(threaded: type, asynchronous: type) -> None:
    """With the same parameters, in the same order and with the same defaults."""
    here, there = methods(threaded), methods(asynchronous)
    if threaded is TextStream:
        del here["result"]  # a plain attribute of the other
    assert here.keys() == there.keys()
    for name, method in here.items():
        assert parameters(method) == parameters(there[name]), name


@pytest.mark.parametrize(("threaded", "asynchronous"), FACES)
def test_one_face_is_awaited_and_the_other_is_not(threaded: type, asynchronous: type) -> None:
    """A method that forgets to `run` its coroutine would hand it to the caller."""
    for name, method in methods(asynchronous).items():
        awaited = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        assert awaited is (name not in AT_ONCE), name
    for name, method in methods(threaded).items():
        assert not inspect.iscoroutinefunction(method), name
        assert not inspect.isasyncgenfunction(method), name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("submit", ItemOptions),
        ("stream", ItemOptions),
        ("submit_many", ManyOptions),
        ("submit_pipeline", PipelineOptions),
    ],
)
def test_the_keywords_that_are_checked_are_those_that_are_shown(name: str, options: type) -> None:
    """`help` reads the signature, a type checker the TypedDict."""
    shown = inspect.signature(getattr(Client, name)).parameters.values()
    keywords = {one.name: one.annotation for one in shown if one.kind is one.KEYWORD_ONLY}
    assert keywords == {key: hint.__forward_arg__ for key, hint in options.__annotations__.items()}


def test_each_stream_and_each_submission_has_its_usual_priority() -> None:
    """Somebody reads along with a stream; many items can wait."""
    usual = {
        name: inspect.signature(getattr(Client, name)).parameters["priority"].default
        for name in ("submit", "stream", "submit_many", "submit_pipeline")
    }
    assert usual == {"submit": "standard", "stream": "interactive", "submit_many": "bulk", "submit_pipeline": "bulk"}


def test_a_misspelt_keyword_is_refused() -> None:
    """Before anything is connected to."""
    with Client("redis://127.0.0.1:1/0", "sqlite://") as client:
        with pytest.raises(TypeError, match="unexpected keyword argument 'prioritty'"):
            client.submit("topic", "a", prioritty="bulk")  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'params'"):
            client.submit_pipeline(Pipeline().step("a", task="topic"), ["a"], params={})  # type: ignore[call-arg]
