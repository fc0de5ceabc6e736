"""Pictures that a site sends on: smaller, upright, and otherwise as they came."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from producers.edge.departure import Roots, departing
from producers.edge.smaller_pictures import smaller
from producers.wire.edge.edge_settings import EdgeTask
from producers.wire.messages import InlineBytes, Item
from workers.models.pictures import pixels


def picture(mode: str = "RGB", size: tuple[int, int] = (1200, 800), form: str = "JPEG", **options: Any) -> bytes:
    """Return a picture whose left half is dark and whose upper half is reddish."""
    made = io.BytesIO()
    image = Image.new("RGB", size, "white")
    image.paste((40, 40, 40), (0, 0, size[0] // 2, size[1]))
    image.paste((200, 30, 30), (0, 0, size[0] // 4, size[1] // 2))
    image = Image.blend(image, Image.effect_noise(size, 60).convert("RGB"), 0.2)  # or PNG would pack it to nothing
    image.convert(mode).save(made, form, **options)
    return made.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("mode", "form"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")])
def test_a_larger_picture_is_made_smaller(mode: str, form: str) -> None:
    """A worker reads nearly the same pixels from it."""
    given = picture(mode, form=form)
    made = smaller(given, 600)
    assert opened(made).size == (600, 400)
    wanted, found = (pixels.decode(data).astype(int) for data in (given, made))
    assert abs(wanted - found).mean() < 3


def test_a_picture_on_its_side_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    given = picture(exif=exif)
    made = smaller(given, 600)
    assert opened(made).size == (400, 600)
    assert not opened(made).getexif()
    wanted, found = (pixels.decode(data).astype(int) for data in (given, made))
    assert abs(wanted - found).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_metadata_of_a_picture_stay(form: str) -> None:
    about = PngInfo()
    about.add_text("comment", "a secret")
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    given = picture(form=form, comment=b"a secret", exif=exif, xmp=b"a secret", icc_profile=b"a secret", pnginfo=about)
    assert b"a secret" in given
    made = smaller(given, 600)
    assert opened(made).size == (600, 400)
    assert b"a secret" not in made


@pytest.mark.parametrize(
    "given",
    [
        picture(size=(600, 400)),
        picture("RGBA", form="PNG"),
        picture("CMYK"),
        picture("P", form="PNG"),
        picture(form="PNG", save_all=True, append_images=[Image.new("RGB", (1200, 800))]),
        picture(form="BMP"),
        picture()[:2000],
        picture() + b"\xff\xda" * 30,
        b"no picture",
        b"",
    ],
    ids=["small", "transparent", "cmyk", "palette", "frames", "format", "broken", "scans", "other", "empty"],
)
def test_whatever_needs_a_choice_is_sent_as_it_is(given: bytes) -> None:
    """The centre's worker reads it by its own rules, or refuses it by name."""
    assert smaller(given, 600) is given


def test_a_picture_whose_jpeg_would_be_larger_is_sent_as_it_is() -> None:
    given = picture(size=(640, 640), form="WEBP", quality=1)
    assert smaller(given, 639) is given


def test_pictures_of_a_task_leave_as_small_as_it_says() -> None:
    item = Item(0, InlineBytes(picture()), ("image-classification",))
    sizes = [
        len(departing(item, "image-classification", EdgeTask(most_side=side), Roots()).body) for side in (0, 600, 300)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 4
