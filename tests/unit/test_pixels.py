"""Images as strangers send them: each becomes 224 x 224 pixels as a person would see them, or a clear refusal."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from producers.wire.errors import InputTooLarge, InvalidInput
from workers.models.pictures import pixels

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, form, **options)
    return made.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (300, 300)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def colour(row: NDArray[np.uint8], x: int, y: int) -> tuple[int, ...]:
    return tuple(int(value) for value in row[y, x])


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("P", "GIF"),
        ("P", "PNG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("CMYK", "TIFF"),
    ],
)
def test_every_kind_of_colour_is_seen_as_meant(mode: str, form: str) -> None:
    """CMYK read as RGB, or palette numbers read as grey, would be classified without a complaint."""
    row = pixels.decode(saved(halves(mode), form))
    assert row.shape == (224, 224, 3)
    assert row.dtype == np.uint8
    assert near(colour(row, 20, 112), RED)
    assert near(colour(row, 200, 112), BLUE)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """Pillow's own conversion turns all but the darkest 256 of 65,536 greys white."""
    values = np.full((256, 256), 0x8000, dtype=np.uint16)
    row = pixels.decode(saved(Image.fromarray(values), "PNG"))
    assert near(colour(row, 112, 112), (128, 128, 128), by=1)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_wider_values_are_stretched(kind: type) -> None:
    """Scientific images have no fixed white; their darkest and brightest values take its place. Not a number is
    dark.
    """
    values = np.zeros((256, 256), dtype=kind)
    values[:, 128:] = 1_000_000
    if kind is np.float32:
        values[0, 0] = np.nan
    row = pixels.decode(saved(Image.fromarray(values), "TIFF"))
    assert (colour(row, 20, 112), colour(row, 200, 112)) == ((0, 0, 0), WHITE)


def test_a_photograph_is_turned_upright() -> None:
    """Telephones store sideways pixels and an EXIF note; a model does not read the note."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90° clockwise: what was on the left comes to the top
    row = pixels.decode(saved(halves(), "JPEG", exif=exif))
    assert near(colour(row, 112, 20), RED)
    assert near(colour(row, 112, 200), BLUE)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
def test_broken_exif_does_not_cost_the_picture() -> None:
    """The note about a picture may be damaged while the picture is not."""
    row = pixels.decode(saved(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    assert near(colour(row, 20, 112), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    """Cut-out product pictures hide arbitrary colours, mostly black, under their transparent parts."""
    image = Image.new("RGBA", (256, 256), (0, 0, 0, 0)).convert(mode)
    data = saved(image, "PNG", transparency=0) if mode == "P" else saved(image, "PNG")
    assert colour(pixels.decode(data), 112, 112) == WHITE


def test_of_an_animation_the_first_frame_counts() -> None:
    """One item, one picture."""
    frames = [Image.new("RGB", (256, 256), RED), Image.new("RGB", (256, 256), BLUE)]
    row = pixels.decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert near(colour(row, 112, 112), RED)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(form: str) -> None:
    """An upload that broke off must not be classified by its upper half."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), form)
    for kept in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(InvalidInput) as caught:
            pixels.decode(data[:kept])
        assert type(caught.value) is InvalidInput
        assert caught.value.field == "input"


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(values: NDArray[np.uint8], *, interlaced: bool = False, share: float = 1.0, text: bytes = b"") -> bytes:
    """Return a PNG of RGB values, of whose rows only a share is there, in a stream that ends as if it were all."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    passes = [values[top::down, left::across] for left, top, across, down in PASSES] if interlaced else [values]
    rows = [b"\0" + row.tobytes() for part in passes for row in part if row.size]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 2, 0, 0, interlaced)
    content = zlib.compress(b"".join(rows[: round(len(rows) * share)]))
    half = len(content) // 2
    chunks = [(b"IHDR", header), (b"IDAT", content[:half]), (b"IDAT", content[half:])]
    chunks += [(b"zTXt", b"workflow\0\0" + zlib.compress(text, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(60, 90), (1, 1), (3, 5), (17, 2)])
def test_a_png_whose_rows_end_early_is_refused(interlaced: bool, shape: tuple[int, int]) -> None:
    """Pillow leaves the missing rows black, without an error. A picture that is black itself is whole."""
    noise = np.random.default_rng(0).integers(1, 255, (*shape, 3), dtype=np.uint8)
    for values in (noise, np.zeros_like(noise)):
        whole = png(values, interlaced=interlaced)
        assert np.array_equal(pixels.rgb(whole, np.asarray), values)
        for share in (0.75, 0.3):
            cut = png(values, interlaced=interlaced, share=share)
            if cut != whole:
                with pytest.raises(InvalidInput, match=r"rows end early|is truncated"):
                    pixels.rgb(cut, np.asarray)


def test_large_texts_and_profiles_cost_no_picture() -> None:
    """Workflows, XMP, profiles: no model reads them."""
    texts = PngImagePlugin.PngInfo()
    for number in range(3):
        texts.add_text(f"workflow {number}", "x" * 2_000_000, zip=True)
        texts.add_itxt("XML:com.adobe.xmp", "y" * 2_000_000, zip=True)
    data = saved(halves(), "PNG", pnginfo=texts, icc_profile=bytes(2_000_000))
    assert np.array_equal(pixels.decode(data), pixels.decode(saved(halves(), "PNG")))
    behind = png(np.asarray(halves()), text=bytes(50_000_000))
    assert np.array_equal(pixels.decode(behind), pixels.decode(saved(halves(), "PNG")))


def test_texts_without_end_are_refused_as_too_large() -> None:
    """A megabyte may hold a gigabyte."""
    with pytest.raises(InputTooLarge, match="more text than 64 MiB"):
        pixels.decode(png(np.asarray(halves()), text=bytes(70_000_000)))


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"%PDF-1.7 ...", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"GIF89a"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    """PostScript among it: Pillow would start another program to draw it."""
    with pytest.raises(InvalidInput):
        pixels.decode(data)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    """A few hundred bytes may claim gigabytes; the claim in the header is enough to refuse them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    with pytest.raises(InputTooLarge, match="pixels"):
        pixels.decode(bomb)


def test_a_smaller_limit_can_be_set() -> None:
    """An edge device has less memory."""
    with pytest.raises(InputTooLarge, match="300 x 300 pixels, over 1,000"):
        pixels.decode(saved(halves(), "PNG"), max_pixels=1_000)


def test_a_sliver_is_not_blown_up() -> None:
    """Scaling the short side of 1 x 100,000 pixels to 256 first would make 6 gigapixels of it."""
    assert pixels.decode(saved(Image.new("RGB", (1, 100_000), RED), "PNG")).shape == (224, 224, 3)


def test_the_centre_is_what_torchvision_would_take() -> None:
    """The weights were trained on short side 256, centre 224; other pixels are other scores."""
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    scaled = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    difference = np.abs(pixels.decode(saved(image, "PNG")).astype(int) - np.asarray(scaled).astype(int))
    assert difference.max() <= 1


def test_a_picture_that_is_not_rgb_takes_little_memory() -> None:
    """Seven bytes a pixel are the picture and its RGB copy; whole copies of other modes would be twenty more."""
    measured = """
import io, resource
from PIL import Image
from workers.models.pictures import pixels
file = io.BytesIO()
Image.new("RGBA", (4000, 4000), (1, 2, 3, 100)).save(file, "PNG")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
def kib(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
before = kib("VmRSS")
pixels.decode(file.getvalue())
print((kib("VmHWM") - before) * 1024 / 4000**2)
"""
    found = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 12
