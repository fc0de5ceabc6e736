"""The forms of inputs (a text, an image, a question with its context …) and the checks before an input is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import (
    MOST_SEED,
    InlineBytes,
    Input,
    JsonInput,
    MessagesInput,
    PathInput,
    QuestionInput,
    RowInput,
    SeedInput,
    SentencesInput,
    SeriesInput,
    TextAndImageInput,
    UrlInput,
)
from producers.wire.validation import json_schema

T = TypeVar("T")
_Form = TypeVar("_Form", bound=msgspec.Struct)

#: The form of an input. Each source of items (a file, a folder) is read as one form.
Modality = Literal[
    "text",
    "prompt",
    "image",
    "audio",
    "video",
    "question",
    "sentences",
    "row",
    "series",
    "seed",
    "text-and-image",
    "json",
]

#: The forms of inputs that are files or have one.
FILES: frozenset[Modality] = frozenset(("image", "audio", "video", "text-and-image"))

#: The forms that are objects, with their fields. A file may hold these fields as columns instead of one column of
#: objects.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "question": QuestionInput.__struct_fields__,
    "sentences": SentencesInput.__struct_fields__,
    "text-and-image": TextAndImageInput.__struct_fields__,
}


#: What `producers.client.redaction` can replace in texts.
Redactable = Literal["email", "iban", "card", "ip", "phone"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest accepted inputs. The producer checks them, and the worker checks again."""

    max_text_chars: int = 100_000
    max_input_bytes: int = 20 * 1024 * 1024
    redact: tuple[Redactable, ...] = ()


def check(modality: Modality, value: object, limits: Limits, field: str) -> Input:
    """Return `value` as an input of this form, or raise InvalidInput or InputTooLarge naming `field`."""
    checked = _CHECKS[modality](value, limits, field)
    # texts and files were checked above; the names and numbers in these objects were not
    objects = MessagesInput | RowInput | SeriesInput | JsonInput
    return sendable(checked, field) if isinstance(checked, objects) else checked


def sendable(value: T, field: str) -> T:
    """Return `value` if an envelope can carry it. Raises InvalidInput for lone surrogates or numbers over 64 bits."""
    try:
        msgspec.msgpack.encode(value)  # of JSON and MessagePack, the format with the narrower range
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInput(field, f"cannot be sent: {error}", "send valid Unicode and numbers of 64 bits") from error
    return value


def parameters(values: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return parameters as an envelope carries them. Raises InvalidInput, also for a number that JSON makes null."""
    found: dict[str, Any] = plain(values)
    for place, problem in json_schema.not_json(found):
        raise InvalidInput(json_schema.within(field, place), problem, "give a finite number, or leave it out")
    return sendable(found, field)


def plain(value: Any) -> Any:
    """Return a value with its subclasses of text, decimals and numbers of NumPy as Python's own, also in its parts.

    Messages carry no other types.
    """
    if isinstance(value, Mapping):
        return {plain(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, str):
        return str.__str__(value)  # `str` of an enum's member would be its name
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return value
    return int(value) if isinstance(value, Integral) else as_float(value)


def as_float(value: Any) -> float | None:
    """Return a number as a float, or None if the value is none. A number over the range of floats is infinite."""
    given = value  # which mypy would narrow to a type without comparisons
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:  # of Python's integers and fractions, which have no bound
        return math.inf if given > 0 else -math.inf
    except ValueError:  # of a decimal that signals that it is no number
        return math.nan


def check_text(value: object, limits: Limits, field: str) -> str:
    """Return a text if it is valid Unicode, within the limit, and not only white space."""
    if type(value) is not str:
        value = _as_text(value, field)
    if is_text(value, limits):
        return value
    if not value or value.isspace():
        raise InvalidInput(field, "is empty", "leave the item out, or give it a text")
    if len(value) > limits.max_text_chars:
        limit = limits.max_text_chars
        raise InputTooLarge(field, f"has {len(value):,} characters, over {limit:,}", "split the text")
    raise InvalidInput(field, "is not valid Unicode (surrogates not allowed)", "decode it with the right encoding")


def is_text(value: str, limits: Limits) -> bool:
    """Return whether a text is valid Unicode, within the limit, and not only white space."""
    if not 0 < len(value) <= limits.max_text_chars or value.isspace():
        return False
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


#: The types of pandas' own missing values. A missing text is often NaN.
_MISSING = frozenset(("NAType", "NaTType"))


def _as_text(value: object, field: str) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in _MISSING:
        missing = "null" if value is None else "NaN"
        raise InvalidInput(field, f"is {missing}, a missing text", "leave the item out, or give it a text")
    remedy = (
        "decode it to str first"
        if isinstance(value, bytes | bytearray | memoryview)
        else "make it a text, in Python with str()"
    )
    raise InvalidInput(field, f"must be text, not {type(value).__name__}", remedy)


#: The beginning of a URL, also of one that holds the bytes themselves. A single letter may be a drive.
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


def _check_file(what: str, value: object, limits: Limits, field: str) -> Input:
    """Return a file's bytes as an input, or the path or URL of the file."""
    if isinstance(value, Path):
        value = PathInput(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        value = InlineBytes(bytes(value))
    if isinstance(value, InlineBytes):
        if not value.data:
            raise InvalidInput(field, "is empty", f"send the bytes of {what}")
        if len(value.data) > limits.max_input_bytes:
            size, limit = len(value.data), limits.max_input_bytes
            raise InputTooLarge(field, f"has {size:,} bytes, over {limit:,}", "send a smaller file, or a path or URL")
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        value = UrlInput(text.strip()) if _SCHEME.match(text) else PathInput(text)
    if isinstance(value, PathInput | UrlInput):
        if not (value.path if isinstance(value, PathInput) else value.url):
            raise InvalidInput(field, "is empty", "send bytes, a path or a URL")
        if isinstance(value, UrlInput) and not value.url.lower().startswith(("http://", "https://")):
            raise InvalidInput(field, "is no http or https URL", "send the bytes, a path or an https URL")
        return sendable(value, field)
    raise InvalidInput(field, f"must be bytes, a path or a URL, not {type(value).__name__}")


def _check_question(value: object, limits: Limits, field: str) -> Input:
    given = _typed(value, QuestionInput, field)
    check_text(given.question, limits, f"{field}.question")
    check_text(given.context, limits, f"{field}.context")
    return given


def _check_prompt(value: object, limits: Limits, field: str) -> Input:
    """Return a text, or the messages of a dialogue: a list, or an object with `messages` as in OpenAI's requests."""
    if isinstance(value, str) or value is None:
        return check_text(value, limits, field)
    if isinstance(value, list | tuple):
        value = {"messages": value}
    given = _typed(value, MessagesInput, field)
    if not given.messages:
        raise InvalidInput(f"{field}.messages", "is empty", 'give it [{"role": "user", "content": …}]')
    for place, message in enumerate(given.messages):
        check_text(message.content, limits, f"{field}.messages[{place}].content")
    if sum(len(message.role) + len(message.content) for message in given.messages) > limits.max_text_chars:
        raise InputTooLarge(field, f"has over {limits.max_text_chars:,} characters in all", "leave out early messages")
    return given


def _check_sentences(value: object, limits: Limits, field: str) -> Input:
    given = _typed(value, SentencesInput, field)
    if not given.sentences:
        raise InvalidInput(f"{field}.sentences", "is empty", "give it sentences to compare with")
    texts = {"source_sentence": given.source_sentence}
    texts |= {f"sentences[{place}]": text for place, text in enumerate(given.sentences)}
    for name, text in texts.items():
        check_text(text, limits, f"{field}.{name}")
    if sum(map(len, texts.values())) > limits.max_text_chars:
        raise InputTooLarge(field, f"has over {limits.max_text_chars:,} characters in all", "send fewer sentences")
    return given


_PLAIN = frozenset((str, int, float, bool, type(None)))


def _check_row(value: object, limits: Limits, field: str) -> Input:
    """Return a row of a table: an object of columns and values, all numbers finite.

    The columns of a list are named by their places: ``"0"``, ``"1"`` ….
    """
    values = value.values if isinstance(value, RowInput) else value
    if not isinstance(values, Mapping):
        values = value = _columns_of(values)
    if not isinstance(values, Mapping) or not values:
        raise InvalidInput(field, "must be an object of columns and values", 'for example {"age": 44, "smoker": "no"}')
    if not _PLAIN.issuperset(map(type, (*values, *values.values()))):
        values, value = plain(values), None
    for column, one in values.items():
        where = f"{field}.{column}"
        if not isinstance(column, str):
            raise InvalidInput(where, f"has a column named by {_name(column)}", "name it by a text")
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float | str)):
            raise InvalidInput(where, f"must be a number or text, not {type(one).__name__}", "or null if unknown")
        if isinstance(one, float) and not math.isfinite(one):
            raise InvalidInput(where, f"is {one}", "give a number, or null if it is unknown")
    if sum(len(str(column)) + len(str(one)) for column, one in values.items()) > limits.max_text_chars:
        raise InputTooLarge(field, f"has over {limits.max_text_chars:,} characters in all", "send fewer columns")
    return value if isinstance(value, RowInput) else RowInput(dict(values))


def _columns_of(values: Any) -> object:
    """Return the columns of a row that is no mapping. Rows of pandas and of SQLAlchemy and named tuples name them
    themselves; those of lists and arrays are the places of their values.
    """
    for method in ("_asdict", "to_dict"):
        named: Mapping[Any, Any] = getattr(values, method, dict)()
        if any(isinstance(name, str) for name in named):
            return named
    names = getattr(getattr(values, "dtype", None), "names", None)  # of a structured array
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, list | tuple):
        return values
    return dict(zip(names or map(str, range(len(listed))), listed, strict=True))


def _check_json(value: object, limits: Limits, field: str) -> Input:
    """Return JSON of any form. Arrays and numbers of NumPy are converted with their `tolist`."""
    given = value.value if isinstance(value, JsonInput) else value
    try:
        for place, problem in json_schema.not_json(given):
            raise InvalidInput(json_schema.within(field, place), problem, "give it JSON")
        given = msgspec.to_builtins(given, enc_hook=_as_builtin)
        for place, problem in json_schema.not_json(given):  # the parts of arrays, sets and objects with fields
            raise InvalidInput(json_schema.within(field, place), problem, "give it JSON")
        size = len(msgspec.json.encode(given))
    except RecursionError as error:
        raise InvalidInput(field, "is nested too deeply", "send a flatter object") from error
    except (TypeError, OverflowError, UnicodeError) as error:
        raise InvalidInput(field, f"is not JSON: {error}", "give texts, numbers, lists and objects") from error
    if size > limits.max_text_chars:
        raise InputTooLarge(field, f"has {size:,} bytes, over {limits.max_text_chars:,}", "send it in parts")
    return JsonInput(given)


def _as_builtin(value: Any) -> object:
    """Return a value that msgspec does not know as Python's own. Raises TypeError."""
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"values of the type {type(value).__name__} have no form there")


def _check_series(value: object, limits: Limits, field: str) -> Input:
    """Return a series: a list of numbers per channel, or an object with such lists by channel name."""
    names, channels = _named_channels(value, field)
    named = names or tuple(map(str, range(len(channels))))
    read = tuple(_channel(one, f"{field}.{name}") for name, one in zip(named, channels, strict=True))
    if not read:
        raise InvalidInput(field, "has no channels", "give it a list of numbers for each")
    for name, one in zip(named, read, strict=True):
        if len(one) != len(read[0]):
            problem = f"has {len(one):,} values, and channel {named[0]} has {len(read[0]):,}"
            raise InvalidInput(f"{field}.{name}", problem, "give null for missing values")
    if len(read) * len(read[0]) > limits.max_text_chars:
        raise InputTooLarge(field, f"has over {limits.max_text_chars:,} values in all", "send it in parts")
    return SeriesInput(read, names)


def _named_channels(value: object, field: str) -> tuple[tuple[str, ...], tuple[object, ...]]:
    if isinstance(value, SeriesInput):
        return value.names, value.channels
    if isinstance(value, Mapping):
        return tuple(map(str, value)), tuple(value.values())
    return (), _lists(value, field)


def _lists(value: object, field: str) -> tuple[object, ...]:
    """Return a list's lists; a list of numbers is one channel. Arrays are converted with their `tolist`."""
    listed = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(listed, list | tuple) or not listed:
        raise InvalidInput(
            field, "must be lists of numbers, one for each channel", "for example [[0.1, 0.2], [9.8, 9.7]]"
        )
    return tuple(listed) if isinstance(listed[0], list | tuple) else (listed,)


def _channel(value: object, field: str) -> tuple[float | None, ...]:
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, list | tuple) or not values:
        raise InvalidInput(field, "must be a list of numbers", "of at least one number, with null for missing values")
    numbers: list[float | None] = []
    for place, one in enumerate(values):
        number = one if type(one) is float else as_float(one)
        if number is None and one is not None:
            raise InvalidInput(f"{field}[{place}]", f"must be a number, not {type(one).__name__}", "or null if missing")
        if number is not None and math.isinf(number):
            raise InvalidInput(f"{field}[{place}]", f"is {number}", "give a number, or null if it is missing")
        numbers.append(None if number is None or math.isnan(number) else number)
    return tuple(numbers)


def _check_seed(value: object, limits: Limits, field: str) -> Input:
    """Return a seed: an integer, an object with `seed`, or the digits from a file's column."""
    del limits
    given = value.get("seed") if isinstance(value, Mapping) else value
    if isinstance(given, SeedInput):
        given = given.seed
    if isinstance(given, str) and given.strip().isascii() and given.strip().isdecimal():
        given = int(given.strip()[:20])
    given = plain(given)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MOST_SEED:
        raise InvalidInput(field, f"must be an integer from 0 to {MOST_SEED}, the seed of a picture", "for example 7")
    return SeedInput(given)


def _check_text_and_image(value: object, limits: Limits, field: str) -> Input:
    given = value if isinstance(value, Mapping) else {}
    if isinstance(value, TextAndImageInput):
        given = {"text": value.text, "image": value.image}
    for name in TextAndImageInput.__struct_fields__:
        if name not in given:
            raise InvalidInput(f"{field}.{name}", "is missing", 'give it {"text": …, "image": bytes, a path or a URL}')
    text = check_text(given["text"], limits, f"{field}.text")
    image = _check_file("an image file", given["image"], limits, f"{field}.image")
    assert isinstance(image, InlineBytes | PathInput | UrlInput), "the three forms of a file"
    return TextAndImageInput(text, image)


def _name(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _typed(value: object, form: type[_Form], field: str) -> _Form:
    if isinstance(value, form):
        return value
    names = ", ".join(form.__struct_fields__)
    if not isinstance(value, Mapping):
        raise InvalidInput(field, f"must be an object with {names}, not {type(value).__name__}")
    tag: Any = form.__struct_config__.tag
    try:
        return msgspec.convert({"type": tag, **plain(value)}, form)
    except msgspec.ValidationError as error:
        raise InvalidInput(field, str(error), f"give it an object with {names}") from error


_CHECKS: Mapping[Modality, Callable[[object, Limits, str], Input]] = {
    "text": check_text,
    "prompt": _check_prompt,
    "image": partial(_check_file, "an image file"),
    "audio": partial(_check_file, "an audio file"),
    "video": partial(_check_file, "a video file"),
    "question": _check_question,
    "sentences": _check_sentences,
    "row": _check_row,
    "series": _check_series,
    "seed": _check_seed,
    "text-and-image": _check_text_and_image,
    "json": _check_json,
}
