"""Pictures that are sent to the centre smaller than the site got them."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

#: The quality of the JPEG that is sent, Pillow's 0 to 95.
QUALITY = 85

#: The formats that are made smaller; all others are sent as they are.
FORMATS = ("JPEG", "PNG", "WEBP")

#: Larger pictures are sent as they are: the centre refuses them, and reading one would take the site's memory.
MOST_PIXELS = 50_000_000

#: A JPEG with more scans is sent as it is: each costs as much time as the whole picture. Usual ones have up to 10.
MOST_SCANS = 20

_SCAN = b"\xff\xda"


def smaller(data: bytes, most_side: int) -> bytes:
    """Return a picture whose longer side has at most `most_side` pixels, upright, as a JPEG.

    The same bytes are returned for a picture that is not larger, and for whatever this cannot make smaller without a
    choice that is the model's: transparency, several frames, other colours than 8 bits of grey or RGB, broken files.
    """
    if data.count(_SCAN) > MOST_SCANS:
        return data
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            usual = image.mode in ("L", "RGB") and not image.has_transparency_data
            single = getattr(image, "n_frames", 1) == 1
            if max(width, height) <= most_side or width * height > MOST_PIXELS or not (usual and single):
                return data
            image.draft(image.mode, (most_side, most_side))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((most_side, most_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
            upright.info.clear()  # Pillow would write a JPEG's comment
            made = io.BytesIO()
            upright.save(made, "JPEG", quality=QUALITY)
    except Exception:  # noqa: BLE001 - malformed bytes raise anything in Pillow; the centre says what is wrong with them
        return data
    return min(data, made.getvalue(), key=len)
