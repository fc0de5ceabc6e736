"""Whatever arrives, only typed errors come of it: the wire decoder and every input decoder, ten thousand inputs each."""

from __future__ import annotations

import io

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from producers.catalogue import Catalogue
from producers.errors import InvalidInput, InvalidMessage
from producers.messages import JSON, MSGPACK, VERSION, BadItem, Envelope, decode, decode_bytes
from workers.inputs import InputLimits, read
from workers.models import pixels

MANY = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)

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


def assert_decodes_or_says_why(raw: object) -> None:
    try:
        envelope, bad = decode(raw)
    except InvalidMessage:
        return
    assert isinstance(envelope, Envelope)
    assert all(isinstance(item, BadItem) for item in bad)


@MANY
@given(st.binary(max_size=200), st.sampled_from([JSON, MSGPACK, "application/x-python-serialize", ""]))
def test_any_bytes_are_an_envelope_or_an_invalid_message(payload, content_type):
    """Of JSON, MessagePack, and what claims to be neither."""
    try:
        raw = decode_bytes(payload, content_type)
    except InvalidMessage:
        return
    assert_decodes_or_says_why(raw)


@MANY
@given(nearly_envelopes, st.sampled_from([JSON, MSGPACK]))
def test_what_is_nearly_an_envelope_is_one_or_says_why(raw, content_type):
    """Right in most fields and wrong in some, through both codecs: the errors that a real producer's bug would make."""
    encode = msgspec.json.encode if content_type == JSON else msgspec.msgpack.encode
    try:
        payload = encode(raw)
    except (OverflowError, UnicodeEncodeError):  # integers and lone surrogates that the wire cannot carry
        return
    assert_decodes_or_says_why(decode_bytes(payload, content_type))


def _picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 12)).convert("P" if form == "GIF" else "RGB").save(file, form)
    return file.getvalue()


PICTURES = [_picture(form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")]


@st.composite
def broken_pictures(draw: st.DrawFn) -> bytes:
    """A real image file, cut somewhere and with some bytes changed."""
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@MANY
@given(broken_pictures() | st.binary(max_size=100))
def test_any_bytes_are_an_image_or_an_invalid_input(data):
    """Damaged files of six formats, and noise."""
    try:
        found = pixels.decode(data, max_pixels=100_000)
    except InvalidInput:
        return
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


@MANY
@given(st.fixed_dictionaries({"path": paths}) | st.fixed_dictionaries({"url": urls}) | st.text(max_size=30) | values)
def test_any_input_is_content_or_an_invalid_input(value):
    """As the worker reads it: checked against its task, then read; nothing is listed here, so nothing may be fetched."""
    catalogue, limits = Catalogue.builtin(), InputLimits()
    raw = value
    if isinstance(value, dict) and set(value) in ({"path"}, {"url"}):
        raw = next(iter(value.values()))
    for task in ("sentiment", "image-classification"):
        try:
            checked = catalogue.check_input(catalogue.task(task), raw, field="input")
            content = read(checked, limits)
        except InvalidInput:
            continue
        assert isinstance(content, str)
