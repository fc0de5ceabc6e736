"""The kinds that make pictures. Their results are files; the row holds a reference to each file."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from producers.wire.kinds.kind import Kind, at_least, share
from producers.wire.messages import MOST_SEED

PictureFormat: TypeAlias = Literal["png", "jpeg", "webp"]

MOST_STEPS = 1000

_LONGEST_PROMPT_CHARS = 100_000


class ImageToImageParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result is a file of this `format`."""

    format: PictureFormat = "png"


class StyleTransferParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`style` is a style of the model (null: its first), `strength` its share from 0 to 1, `format` the file type."""

    style: str | None = None
    strength: float = 1.0
    format: PictureFormat = "png"

    def __post_init__(self) -> None:
        share("strength", self.strength)


class DiffusionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Denoise in `num_inference_steps` (null: 50, or the model's own number).

    The picture has the model's own size unless `height` and `width` are given. The result is a file of this `format`.
    """

    num_inference_steps: int | None = None
    height: int | None = None
    width: int | None = None
    format: PictureFormat = "png"

    def __post_init__(self) -> None:
        at_least("num_inference_steps", self.num_inference_steps)
        if self.num_inference_steps is not None and self.num_inference_steps > MOST_STEPS:
            raise ValueError(f"`num_inference_steps` must be {MOST_STEPS} or less")
        at_least("height", self.height)
        at_least("width", self.width)


class TextToImageParams(DiffusionParams, frozen=True, forbid_unknown_fields=True):
    """Parameters of text-to-image, as in the pipelines of diffusers.

    The same `seed` gives the same picture (null: drawn at random and returned with the result). `guidance_scale` over 1
    moves the picture towards the prompt, away from `negative_prompt`.
    """

    guidance_scale: float = 7.5
    negative_prompt: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        DiffusionParams.__post_init__(self)
        if len(self.negative_prompt) > _LONGEST_PROMPT_CHARS:
            raise ValueError(f"`negative_prompt` must have at most {_LONGEST_PROMPT_CHARS:,} characters")
        if not 0 <= self.guidance_scale <= 100:
            raise ValueError("`guidance_scale` must be 0 to 100")
        if self.seed is not None and not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"`seed` must be 0 to {MOST_SEED}")


class PictureFile(msgspec.Struct, frozen=True):
    """The address, type and size of a picture. `Client.read_file` fetches it."""

    uri: str
    media_type: str
    bytes: int
    sha256: str
    width: int
    height: int


class Picture(msgspec.Struct, frozen=True):
    """A picture made from a picture."""

    image: PictureFile


class DrawnPicture(msgspec.Struct, frozen=True):
    """A picture from noise; `seed` reproduces it. If `flagged`, the safety checker rejected it and it is black."""

    image: PictureFile
    seed: int
    flagged: bool = False


PICTURE_KINDS = (
    Kind("image-to-image", "image", ImageToImageParams, Picture, "a picture made from a picture", makes_files=True),
    Kind("style-transfer", "image", StyleTransferParams, Picture, "the picture in another style", makes_files=True),
    Kind("text-to-image", "text", TextToImageParams, DrawnPicture, "a picture of a text's content", makes_files=True),
    Kind(
        "unconditional-image-generation",
        "seed",
        DiffusionParams,
        DrawnPicture,
        "a picture of the model's subject, made from noise",
        makes_files=True,
    ),
)
