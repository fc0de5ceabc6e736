"""Inputs that every machine has, to measure a model on: English prose from Python's own documentation, and drawn pictures.

They are of real lengths and mostly of real words, which is what speed and agreement between backends depend on; they have no
labels, so they say nothing of accuracy.
"""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, TypeAlias

import msgspec

from producers.wire.catalogue import Task

#: An input, and the parameters of the tasks that are wanted on it.
Item: TypeAlias = tuple[Any, Mapping[str, msgspec.Struct]]

_MODULES = (
    "argparse", "asyncio.tasks", "collections", "configparser", "csv", "datetime", "decimal", "difflib", "email.message",
    "fractions", "functools", "heapq", "inspect", "ipaddress", "json", "logging", "mailbox", "optparse", "os", "pathlib",
    "random", "shutil", "smtplib", "socket", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "unittest.case", "urllib.parse", "urllib.request", "uuid", "zipfile",
)  # fmt: skip

#: Words of a long text; every fifth is one.
_LONG, _SHORT = 130, 22

#: What zero-shot tasks are asked where nobody says.
_LABELS = ("technology", "sport", "politics")


def usual_params(task: Task) -> msgspec.Struct:
    """Return a task's usual parameters; what is too long is cut, and labels are some or others."""
    names = task.kind.params.__struct_fields__
    chosen: dict[str, Any] = {"truncation": True} if "truncation" in names else {}
    if "candidate_labels" in names:
        chosen["candidate_labels"] = _LABELS
    return msgspec.convert(chosen, task.kind.params)


def for_all(contents: Sequence[Any], tasks: Mapping[str, Task]) -> list[Item]:
    """Return each content with all tasks wanted on it."""
    params = {name: usual_params(task) for name, task in tasks.items()}
    return [(content, params) for content in contents]


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Return `count` texts, a fifth of them long: paragraphs of docstrings, cut to the lengths of the benchmarks' mix."""
    words = [paragraph.split() for paragraph in _paragraphs()]
    random = Random(seed)  # noqa: S311 - a sample, not a secret
    random.shuffle(words)
    # an interpreter without docstrings (-OO) has no prose, but lengths are still real
    joined = [word for paragraph in words for word in paragraph] or [*_MODULES] * _LONG
    found: list[str] = []
    start = 0
    for number in range(count):
        length = _LONG if number % 5 == 0 else random.randint(6, 2 * _SHORT - 6)
        found.append(" ".join(joined[start : start + length]))
        start = (start + length) % (len(joined) - _LONG)
    return found


def _paragraphs() -> Iterator[str]:
    for name in _MODULES:
        module = importlib.import_module(name)
        for _, member in sorted(vars(module).items()):
            if inspect.isroutine(member) or inspect.isclass(member):
                for paragraph in (inspect.getdoc(member) or "").split("\n\n"):
                    if len(paragraph.split()) > 12 and ">>>" not in paragraph:
                        yield paragraph


def images(count: int, *, seed: int = 0) -> list[bytes]:
    """Return `count` PNG pictures of coloured shapes on shaded grounds, no two alike."""
    from PIL import Image, ImageDraw, ImageFilter

    random = Random(seed)  # noqa: S311 - a sample, not a secret
    found: list[bytes] = []
    for _ in range(count):
        picture = Image.linear_gradient("L").resize((256, 256)).rotate(random.randrange(360)).convert("RGB")
        draw = ImageDraw.Draw(picture)
        for _ in range(random.randint(3, 9)):
            left, top = random.randrange(200), random.randrange(200)
            box = (left, top, left + random.randint(20, 120), top + random.randint(20, 120))
            shape = random.choice((draw.ellipse, draw.rectangle))
            shape(box, fill=(random.randrange(256), random.randrange(256), random.randrange(256)))
        made = io.BytesIO()
        picture.filter(ImageFilter.GaussianBlur(random.randint(0, 3))).save(made, "PNG")
        found.append(made.getvalue())
    return found
