"""Whatever arrives, only typed errors come of it: the wire decoder and every input decoder, thousands of inputs each."""

from __future__ import annotations

import io
import itertools
import os

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidInput, InvalidMessage
from producers.wire.messages import JSON, MSGPACK, VERSION, BadItem, Envelope, decode, decode_bytes
from workers.envelope.input_limits import InputLimits
from workers.envelope.inputs import read
from workers.models.pictures import pixels

#: `make test-long` tries ten thousand.
INPUTS = int(os.environ.get("ARGOSY_FUZZ_INPUTS", "2000"))
CATALOGUE = Catalogue.builtin()


def many(inputs_each: int) -> settings:
    """As many examples as make `INPUTS`: drawing one costs far more than trying several made from it."""
    examples = -(-INPUTS // inputs_each)
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda more: st.lists(more, max_size=4) | st.dictionaries(st.text(max_size=8), more, max_size=4),
    max_leaves=8,
)
FIELDS = ("version", "id", "job", "model", "priority", "queued_at", "items", "deadline_at", "durable", "more")
items = st.fixed_dictionaries(
    {},
    optional={
        "seq": st.integers(0, 5) | scalars,
        "input": st.text(max_size=5)
        | values
        | st.fixed_dictionaries({"type": st.sampled_from(["bytes", "path", "url", "x"])}),
        "tasks": st.lists(st.sampled_from(["sentiment", "topic", "x"]), max_size=3) | values,
        "params": st.dictionaries(st.text(max_size=5), values, max_size=2) | values,
        "key": st.none() | st.text(max_size=5) | values,
    },
)
nearly_envelopes = st.fixed_dictionaries(
    {
        "version": st.just(VERSION) | values,
        "id": st.text(max_size=26) | values,
        "job": st.text(max_size=26) | values,
        "model": st.just("text") | values,
        "priority": st.sampled_from([0, 3, 9]) | values,
        "queued_at": st.floats(allow_nan=False) | values,
        "items": st.lists(items | values, max_size=4) | values,
    },
    optional=dict.fromkeys(FIELDS[7:], values),
)


RIGHT = {
    "version": VERSION,
    "id": "an id",
    "job": "a job",
    "model": "text",
    "priority": 3,
    "queued_at": 1.0,
    "items": [{"seq": 0, "input": "hello", "tasks": ["sentiment"]}],
}
CONTENT_TYPES = (JSON, MSGPACK, "application/x-python-serialize", "")


def test_what_is_right_in_every_field_is_an_envelope():
    """Or the ten thousand would all fail for the same reason."""
    envelope, bad = decode(RIGHT)
    assert (len(envelope.items), bad) == (1, [])


def assert_decodes_or_says_why(raw: object) -> None:
    try:
        envelope, bad = decode(raw)
    except InvalidMessage:
        return
    assert isinstance(envelope, Envelope)
    assert all(isinstance(item, BadItem) for item in bad)


@many(inputs_each=len(CONTENT_TYPES))
@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_an_invalid_message(payload):
    """Of JSON, MessagePack, and what claims to be neither."""
    for content_type in CONTENT_TYPES:
        try:
            raw = decode_bytes(payload, content_type)
        except InvalidMessage:
            continue
        assert_decodes_or_says_why(raw)


@many(inputs_each=1 + len(RIGHT))
@given(nearly_envelopes)
def test_what_is_nearly_an_envelope_is_one_or_says_why(wrong):
    """Wrong in one field or in several, through both codecs: the errors that a real producer's bug would make."""
    alone = [{**RIGHT, field: value} for field, value in wrong.items()]  # among others, only the first one is looked at
    for raw in (wrong, *alone):
        for encode, content_type in ((msgspec.json.encode, JSON), (msgspec.msgpack.encode, MSGPACK)):
            try:
                payload = encode(raw)
            except (OverflowError, UnicodeEncodeError):  # integers and lone surrogates that the wire cannot carry
                continue
            assert_decodes_or_says_why(decode_bytes(payload, content_type))


def _picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 12)).convert("P" if form == "GIF" else "RGB").save(file, form)
    return file.getvalue()


PICTURES = [_picture(form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")]


parts = st.floats(0, 1, exclude_max=True)  # of a file's length


def broken(picture: bytes, changes: list[tuple[float, int]], end: float | None) -> bytes:
    """A real image file with some bytes changed, and cut somewhere."""
    data = bytearray(picture)
    for place, byte in changes:
        data[int(place * len(data))] = byte
    return bytes(data if end is None else data[: int(end * len(data))])


@many(inputs_each=len(PICTURES) + 1)
@given(st.lists(st.tuples(parts, st.integers(0, 255)), max_size=6), st.none() | parts, st.binary(max_size=100))
def test_any_bytes_are_an_image_or_an_invalid_input(changes, end, noise):
    """Damaged files of six formats, and noise."""
    for data in (noise, *(broken(picture, changes, end) for picture in PICTURES)):
        try:
            found = pixels.decode(data, max_pixels=100_000)
        except InvalidInput:
            continue
        assert found.shape == (224, 224, 3)


paths = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["/etc/passwd", "../x", "\x00", "~", "", "/" * 5000]
)
urls = st.text(max_size=30) | st.sampled_from(
    [
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "https://[::1]/",
        "http://",
        "https://a@b:c@d/",
        "https://[",
        "gopher://x",
    ]
)


@many(inputs_each=4)
@given(st.tuples(paths, urls, st.text(max_size=30), values))
def test_any_input_is_content_or_an_invalid_input(inputs):
    """As the worker reads it: checked against its task, then read; nothing is listed here, so nothing may be
    fetched.
    """
    limits = InputLimits()
    for raw, task in itertools.product(inputs, (CATALOGUE.task("sentiment"), CATALOGUE.task("image-classification"))):
        try:
            checked = CATALOGUE.check_input(task, raw, field="input")
            content = read(checked, limits)
        except InvalidInput:
            continue
        assert isinstance(content, str)
