"""Inputs on every machine to test and measure a model: prose from Python's docstrings, drawn pictures, tones.

Lengths and most words are real, since speed and the agreement between backends depend on them. There are no labels, so
the samples say nothing about accuracy.
"""

from __future__ import annotations

import importlib
import inspect
import io
import wave
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import pi, sin
from random import Random
from typing import Any, TypeAlias

import msgspec

from producers.wire.catalogue import Task
from producers.wire.forms import Modality
from producers.wire.messages import InlineBytes, QuestionInput, SeedInput, SentencesInput, TextAndImageInput

#: An input, and the parameters of its tasks.
Item: TypeAlias = tuple[Any, Mapping[str, msgspec.Struct]]

_MODULES = (
    "argparse", "asyncio.tasks", "collections", "configparser", "csv", "datetime", "decimal", "difflib",
    "email.message", "fractions", "functools", "heapq", "inspect", "ipaddress", "json", "logging", "mailbox",
    "optparse", "os", "pathlib", "random", "shutil", "smtplib", "socket", "statistics", "string", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "unittest.case", "urllib.parse", "urllib.request", "uuid",
    "zipfile",
)  # fmt: skip

#: The number of words of a long text (every fifth text) and of a short text on average.
_LONG, _SHORT = 130, 22

#: The candidate labels of zero-shot samples.
_LABELS = ("technology", "sport", "politics")


def usual_params(task: Task) -> msgspec.Struct:
    """Return a task's usual parameters: long inputs are truncated, and zero-shot tasks get some labels."""
    names = task.kind.params.__struct_fields__
    chosen: dict[str, Any] = {"truncation": True} if "truncation" in names else {}
    if "candidate_labels" in names:
        chosen["candidate_labels"] = _LABELS
    return msgspec.convert(chosen, task.kind.params)


def for_tasks(tasks: Mapping[str, Task], count: int) -> list[Item]:
    """Return about `count` inputs, alternating between the tasks' forms, each with all tasks of its form.

    Raises NotImplementedError for table rows and series: only the model knows their columns and channels.
    """
    forms: dict[Modality, dict[str, msgspec.Struct]] = {}
    for name, task in tasks.items():
        forms.setdefault(task.kind.modality, {})[name] = usual_params(task)
    by_form: list[list[Item]] = []
    for form, params in forms.items():
        if form not in _CONTENTS:
            raise NotImplementedError(
                f"there are no samples of the form {form!r}; override `samples` in the model's class"
            )
        by_form.append([(content, params) for content in _CONTENTS[form](max(2, count // len(forms)))])
    return [item for group in zip_longest(*by_form) for item in group if item is not None]


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Return `count` texts, every fifth long: paragraphs of docstrings, cut to the lengths of the benchmarks' mix."""
    words = [paragraph.split() for paragraph in _paragraphs()]
    random = Random(seed)  # noqa: S311 - a sample, not a secret
    random.shuffle(words)
    # an interpreter without docstrings (-OO) has no prose, but the lengths stay real
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
    """Return `count` different PNG pictures of coloured shapes on shaded grounds."""
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


def videos(count: int) -> list[bytes]:
    """Return `count` GIFs of 16 frames, 160 x 160; each zooms into a picture."""
    from PIL import Image

    found: list[bytes] = []
    for picture in images(count):
        whole, made = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
        boxes = [(edge, edge, whole.width - edge, whole.height - edge) for edge in range(0, 32, 2)]
        first, *others = [whole.resize((160, 160), box=box) for box in boxes]
        first.save(made, "GIF", save_all=True, append_images=others)
        found.append(made.getvalue())
    return found


def recordings(count: int) -> list[bytes]:
    """Return `count` WAV files of two or one and a half seconds at 16 kHz, a single tone each."""
    return [_tone(220 + 20 * number, 32_000 - 8_000 * (number % 2)) for number in range(count)]


def _tone(hertz: int, frames: int) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(array("h", (int(9_000 * sin(2 * pi * hertz * n / 16_000)) for n in range(frames))).tobytes())
    return made.getvalue()


def _questions(count: int) -> list[QuestionInput]:
    return [QuestionInput("Which one is it, and when?", text) for text in texts(count)]


def _sentences(count: int) -> list[SentencesInput]:
    """Return texts to compare with their two halves; a half is every other word."""
    halves = [(text.split()[::2], text.split()[1::2]) for text in texts(count)]
    return [
        SentencesInput(text, tuple(" ".join(half) for half in own if half))
        for text, own in zip(texts(count), halves, strict=True)
    ]


def _texts_and_images(count: int) -> list[TextAndImageInput]:
    """Return short texts with pictures, two texts for each picture."""
    pictures = images(max(2, count // 2))
    return [
        TextAndImageInput(text[:60], InlineBytes(pictures[number % len(pictures)]))
        for number, text in enumerate(texts(count))
    ]


#: The samples of each form by `count`; slow forms get fewer.
_CONTENTS: Mapping[Modality, Callable[[int], Sequence[Any]]] = {
    "text": texts,
    "prompt": texts,
    "image": lambda count: images(max(2, count // 2)),
    "video": lambda count: videos(max(2, count // 8)),
    "audio": lambda count: recordings(max(2, count // 8)),
    "question": _questions,
    "sentences": _sentences,
    "seed": lambda count: [SeedInput(seed) for seed in range(count)],
    "text-and-image": _texts_and_images,
}
