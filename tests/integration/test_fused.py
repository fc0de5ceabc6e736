"""Text and image in one item: what the trained head knows, which input is at fault, nobody's answer changed by its
neighbours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from producers.gateway.schemas import input_of
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from producers.wire.forms import Limits, check
from producers.wire.messages import (
    Envelope,
    InlineBytes,
    Item,
    PathInput,
    Priority,
    TextAndImageInput,
    UrlInput,
    decode,
    decode_bytes,
    encode,
)
from tests.serving import Served, assert_alike
from workers import settings
from workers.envelope.input_limits import InputLimits
from workers.envelope.inputs import read
from workers.models.built_in.fused.fused_model import FusedModel
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source
from workers.models.sources.model_source import BUNDLED, Pulled


class ServedFused(Served):
    """As a fleet serves it, with the folders that `uses` comes to."""

    def __init__(self, folder: Path, used: Mapping[str, Path]) -> None:
        self.catalogue = Catalogue({}).with_models({"own": {"tasks": {"holds": KIND}}}, where="fleet.toml")
        options = {"uses": {role: str(path) for role, path in used.items()}}
        self.model: Any = FusedModel(ModelSpec("own", folder, "1", self.catalogue.tasks, options))


KIND = "visual-question-answering"


@pytest.fixture(scope="module")
def fused(pulled_models: Mapping[str, Pulled]) -> Served:
    used = {role: pulled_models[role].folder for role in ("text", "vision")}
    return ServedFused(BUNDLED / "fused", used).load()


@pytest.fixture(scope="module")
def digits() -> dict[int, list[bytes]]:
    """Held-out handwritten digits, five of each, as PNG files."""
    from workers.shipped_heads.vision import digits

    _, held_out = digits.read(model_source.cache_folder())
    found: dict[int, list[bytes]] = {number: [] for number in range(10)}
    for image, number in zip(held_out.images, held_out.numbers.tolist(), strict=True):
        if len(found[number]) < 5:
            made = io.BytesIO()
            Image.fromarray((image * 255).round().astype(np.uint8)).save(made, "PNG")
            found[number].append(made.getvalue())
    return found


def judged(fused: Served, statement: str, images: list[bytes]) -> list[str]:
    answers = fused.ask("holds", [{"text": statement, "image": image} for image in images])
    return [answer[0]["answer"] for answer in answers]


def test_it_takes_both_to_know(fused: Served, digits: Mapping[int, list[bytes]]) -> None:
    """The same statement is true of one image and false of another, and the same image makes one statement true and
    another false.

    Its figures on all held-out digits and phrasings are in its model card.
    """
    right = 0
    for statement, true_of in (
        ("this is a seven", {7}),
        ("the number is even", {0, 8}),
        ("the digit is not over 4", {0, 3}),
    ):
        for digit in (0, 3, 7, 8):
            right += judged(fused, statement, digits[digit]).count("true" if digit in true_of else "false")
    assert right >= 54, "of 60, and 30 would be chance"


def test_company_changes_nothing(fused: Served, digits: Mapping[int, list[bytes]]) -> None:
    """Texts of other lengths, the same image again, other images."""
    items = [
        {"text": text, "image": digits[digit][0]}
        for digit, text in (
            (7, "this is a seven"),
            (7, "it is one of three to eight, as far as one can see"),
            (2, "an odd figure"),
        )
    ]
    together = fused.ask("holds", items)
    for item, found in zip(items, together, strict=True):
        assert_alike(found, fused.ask("holds", [item])[0])
        assert sum(answer["score"] for answer in found) == pytest.approx(1, abs=1e-5)
        msgspec.convert(found, fused.task("holds").kind.output)
    rows = [fused.model.prepare(fused.content("holds", item), {"holds": None}) for item in items]
    assert len(fused.model.collate(rows)["pixels"]) == 2, "an image of which two things are said is seen once"


def test_answers_are_those_of_plain_transformers(
    fused: Served, digits: Mapping[int, list[bytes]], pulled_models: Mapping[str, Pulled]
) -> None:
    """Two networks of transformers and the head, as one writes it by hand."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForImageClassification, AutoTokenizer

    from workers.models.built_in.fused.fused_network import FusedHead
    from workers.models.built_in.multitask import head_file
    from workers.models.pictures import pixels

    text, vision = (pulled_models[role].folder for role in ("text", "vision"))
    tensors = load_file(BUNDLED / "fused" / head_file.FILE)
    plain = FusedHead.of_shape(tensors).eval()
    plain.load_state_dict(tensors)
    mean, std = (torch.tensor(own).view(1, 3, 1, 1) for own in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    items = [(f"this is a {digit}", digits[digit][1]) for digit in (1, 6, 9)]
    found = fused.ask("holds", [{"text": said, "image": image} for said, image in items])
    encoder = AutoModel.from_pretrained(text).eval()
    network = AutoModelForImageClassification.from_pretrained(vision).mobilenet_v2.eval()
    for (said, image), answers in zip(items, found, strict=True):
        encoded = AutoTokenizer.from_pretrained(text)(said, return_tensors="pt")
        values = torch.from_numpy(pixels.decode(image).copy()).permute(2, 0, 1).unsqueeze(0) / 255
        with torch.inference_mode():
            tokens = encoder(**encoded).last_hidden_state
            places = network((values - mean) / std).last_hidden_state.flatten(2).transpose(1, 2)
            scores = plain(tokens, encoded["attention_mask"].bool(), plain.seen(places))[0].softmax(-1).tolist()
        assert {one["answer"]: one["score"] for one in answers} == pytest.approx(
            dict(zip(("false", "true"), scores, strict=True)), abs=2e-5
        )


@pytest.mark.parametrize(
    ("value", "error", "problem"),
    [
        ({"image": b"png"}, InvalidInput, r"input\.text: is missing"),
        ({"text": "a seven"}, InvalidInput, r"input\.image: is missing"),
        ("a seven", InvalidInput, r"input\.text: is missing"),
        ({"text": " ", "image": b"png"}, InvalidInput, r"input\.text: is empty"),
        ({"text": "a seven", "image": b""}, InvalidInput, r"input\.image: is empty"),
        ({"text": "a seven", "image": 7}, InvalidInput, r"input\.image: must be bytes, a path or a URL"),
        ({"text": "a seven", "image": b"no image"}, InvalidInput, r"input\.image: is not a readable image"),
        (
            {"text": "a seven", "image": "/etc/passwd"},
            InvalidInput,
            r"input\.image: is not a file that the worker may read",
        ),
        ({"text": "\u200b\u200b", "image": b"png"}, InvalidInput, r"input\.text: is empty or has no readable"),
        ({"text": "seven " * 600, "image": b"png"}, InputTooLarge, r"input\.text: has 602 tokens"),
    ],
)
def test_the_part_at_fault_is_named(fused: Served, value: Any, error: type[InvalidInput], problem: str) -> None:
    """At the producer where that can be seen there, else at the worker."""
    with pytest.raises(error, match=problem):
        fused.ask("holds", [value])


def test_it_travels_whole(tmp_path: Path) -> None:
    """As MessagePack with an image's bytes in it, as JSON with a path or URL; read where the worker may read."""
    (tmp_path / "seven.png").write_bytes(b"png")
    for image, content_type in (
        (InlineBytes(b"\x00\xff"), "application/x-msgpack"),
        (PathInput("seven.png"), "application/json"),
        (UrlInput("https://example.org/seven.png"), "application/json"),
    ):
        given = check("text-and-image", {"text": "a seven", "image": image}, Limits(), "input")
        item = Item(0, given, ("holds",))
        sent = encode(
            Envelope(version=1, id="e", job="j", model="own", priority=Priority.BULK, queued_at=0.0, items=(item,))
        )
        assert sent[1] == content_type
        [found] = decode(decode_bytes(*sent))[0].items
        assert found.input == TextAndImageInput("a seven", image)
    limits = InputLimits(allowed_roots=(str(tmp_path),))
    content = read(TextAndImageInput("a seven", PathInput("seven.png")), limits)
    assert content == TextAndImageInput("a seven", InlineBytes(b"png"))
    with pytest.raises(InvalidInput, match=r"input\.image"):
        read(TextAndImageInput("a seven", PathInput("eight.png")), limits)


def test_over_http_the_image_is_base64_a_url_or_a_path() -> None:
    """As an image alone is."""
    assert input_of({"text": "a seven", "image": {"bytes": "AP8="}}, "input") == {
        "text": "a seven",
        "image": InlineBytes(b"\x00\xff"),
    }
    with pytest.raises(InvalidInput, match=r"input\.image\.bytes: is not base64"):
        input_of({"text": "a seven", "image": {"bytes": "?"}}, "input")


def test_the_settings_name_the_models_whose_weights_it_reads(tmp_path: Path) -> None:
    """They are pulled with it; one that is missing or unknown is named."""
    assert settings.load(environment={}).used_by("fused") == ["text", "vision"]
    (tmp_path / "fleet.toml").write_text('[models.fused.uses]\nvision = "eyes"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"models\.fused\.uses: no model 'eyes'"):
        settings.load(tmp_path / "fleet.toml").used_by("fused")
    with pytest.raises(ConfigurationError, match=r"models\.own\.uses: names no model for 'vision'"):
        _ = ServedFused(BUNDLED / "fused", {"text": tmp_path}).model.revision
