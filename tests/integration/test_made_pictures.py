"""Pictures made of pictures: super-resolution as transformers has it, and the built-in styles; and pictures that no
kind takes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from tests.serving import DEVICE, Served, answered
from workers.models.built_in.vision.style_model import StyleModel
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source

Made = Callable[..., Path]

#: What another order of sums may change of a pixel, of 255.
TOLERANCE = 1


def photograph(width: int, height: int, seed: int) -> Image.Image:
    spots = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, form, **options)
    return made.getvalue()


def pixels(output: dict[str, Any]) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(output["image"].data)) as image:
        return np.asarray(image, dtype=np.int16)


def swin2sr(folder: Path) -> Path:
    """Write a Swin2SR that doubles each side."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Swin2SRConfig(
        image_size=16, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2, mlp_ratio=1.5
    )
    transformers.Swin2SRForImageSuperResolution(config).save_pretrained(folder)
    transformers.Swin2SRImageProcessorPil().save_pretrained(folder)
    return folder


PICTURES = [photograph(21, 17, 1), photograph(16, 24, 2), photograph(21, 17, 3), photograph(1, 1, 4)]


@pytest.mark.long
def test_super_resolution_is_that_of_transformers_alone_and_in_company(made: Made) -> None:
    """Twice as wide and as high, without what the network's windows need at the edges."""
    import torch
    import transformers

    folder = made(swin2sr)
    served = Served(folder, {"larger": "image-to-image"}).load()
    network = transformers.AutoModelForImageToImage.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    files = [saved(picture) for picture in PICTURES]
    together = served.ask("larger", files)
    for file, picture, answer in zip(files, PICTURES, together, strict=True):
        with torch.inference_mode():
            output = network(**processor(picture, return_tensors="pt")).reconstruction[0]
        expected = (output.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round()
        cut = expected[: 2 * picture.height, : 2 * picture.width]
        np.testing.assert_allclose(pixels(answer), cut, atol=TOLERANCE)
        [alone] = served.ask("larger", [file])
        np.testing.assert_allclose(pixels(alone), cut, atol=TOLERANCE)
        assert answer["image"].about == {"width": 2 * picture.width, "height": 2 * picture.height}


def test_what_cannot_be_made_larger_is_refused(made: Made, tmp_path: Path) -> None:
    served = Served(made(swin2sr), {"larger": "image-to-image"}, max_image_pixels=300)
    refusal = served.refusal("larger", saved(PICTURES[0]))
    assert isinstance(refusal, InputTooLarge)
    assert "is an image of 21 x 17 pixels, over 300 in all" in str(refusal)
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with pytest.raises(ConfigurationError, match="ViTModel is not supported; Swin2SRForImageSuperResolution is"):
        _ = Served(tmp_path, {"larger": "image-to-image"}).model.revision


# --- styles ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def styles() -> StyleModel:
    tasks = Catalogue({}).with_models({"style": {"tasks": {"style": "style-transfer"}}}, where="fleet.toml").tasks
    model = StyleModel(ModelSpec("style", model_source.BUNDLED / "style", "1", tasks, {"longest_side": 64}))
    model.load(DEVICE)
    return model


def styled(model: StyleModel, asked: list[tuple[Image.Image, dict[str, Any]]]) -> list[dict[str, Any]]:
    task = model.spec.tasks["style"]
    items = [
        (saved(picture), {"style": Catalogue({}).check_params(task, params, field="params")})
        for picture, params in asked
    ]
    return [answer["style"] for answer in answered(model, items)]


def test_each_picture_has_its_own_style_and_strength(styles: StyleModel) -> None:
    """Alone as in company; a strength of 0 is the picture itself, sizes that the network does not take included."""
    picture, other = photograph(37, 30, 5), photograph(40, 30, 6)
    asked = [(picture, {"style": style}) for style in styles.styles]
    asked += [(picture, {"strength": 0.0}), (other, {"style": "mosaic", "strength": 0.5}), (photograph(1, 3, 7), {})]
    together = styled(styles, asked)
    for one, answer in zip(asked, together, strict=True):
        np.testing.assert_allclose(pixels(styled(styles, [one])[0]), pixels(answer), atol=TOLERANCE)
    drawn = [pixels(answer) for answer in together[: len(styles.styles)]]
    assert all(one.shape == (30, 37, 3) for one in drawn)
    for place, one in enumerate(drawn):
        assert all(np.abs(one - rival).mean() > 5 for rival in drawn[place + 1 :])
    np.testing.assert_array_equal(pixels(together[-3]), np.asarray(picture, dtype=np.int16))


def test_large_pictures_are_scaled_down_and_unknown_styles_refused(styles: StyleModel) -> None:
    [answer] = styled(styles, [(photograph(128, 32, 8), {"format": "jpeg"})])
    assert answer["image"].media_type == "image/jpeg"
    assert answer["image"].about == {"width": 64, "height": 16}
    with pytest.raises(
        InvalidInput, match=r"params\.style: 'cubist' is not a style of the model; choose brush, mosaic"
    ):
        styled(styles, [(photograph(8, 8, 9), {"style": "cubist"})])


# --- pictures as strangers send them, for every kind that takes one ------------------------------------


def strange() -> dict[str, bytes]:
    """Return files that are pictures, all of them odd."""
    picture = photograph(40, 30, 1)
    frames = [photograph(40, 30, seed) for seed in (1, 2)]
    return {
        "animated GIF": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "CMYK": saved(picture.convert("CMYK"), "JPEG"),
        "16 bits": saved(Image.fromarray(np.asarray(picture.convert("L"), dtype=np.uint16) * 257)),
        "palette with transparency": saved(picture.convert("P"), "PNG", transparency=3),
        "grey with alpha": saved(picture.convert("LA")),
        "1 x 1": saved(photograph(1, 1, 3)),
    }


@cache
def broken() -> dict[str, bytes]:
    """Return files that are none."""
    whole = saved(photograph(40, 30, 1))
    bomb = saved(Image.new("1", (10_000, 10_000)))
    return {"truncated": whole[: len(whole) // 2], "no image": b"%PDF-1.7 is no image", "empty": b"", "bomb": bomb}


KINDS = ("image-classification", "image-feature-extraction", "object-detection", "image-segmentation", "image-to-image")


@pytest.fixture(scope="module", params=[*KINDS, "style-transfer"])
def serving(request: pytest.FixtureRequest, made: Made, styles: StyleModel) -> Any:
    """A model of each kind, unloaded: what it takes is decided in the parent."""
    from tests import tiny_checkpoints as tiny

    if request.param == "style-transfer":
        return styles
    makers = {"image-to-image": swin2sr, "object-detection": tiny.yolos, "image-segmentation": tiny.segformer}
    served = Served(made(makers.get(request.param, tiny.vit)), {"own": request.param})
    return served.model


def prepare(model: Any, content: bytes) -> Any:
    params = {name: Catalogue({}).check_params(task, {}, field="params") for name, task in model.spec.tasks.items()}
    return model.prepare(content, params)


def test_odd_pictures_are_taken_as_a_person_would_see_them(serving: Any) -> None:
    for what, data in strange().items():
        assert prepare(serving, data).arrays["pixels"].shape[-1] == 3, what
    first = saved(photograph(40, 30, 1), "GIF")
    animated = prepare(serving, strange()["animated GIF"]).arrays["pixels"]
    np.testing.assert_allclose(animated.astype(int), prepare(serving, first).arrays["pixels"].astype(int), atol=8)


def test_what_is_no_picture_is_refused_as_the_senders_fault(serving: Any) -> None:
    for what, data in broken().items():
        with pytest.raises(InvalidInput) as caught:
            prepare(serving, data)
        assert caught.value.field == "input", what
        assert isinstance(caught.value, InputTooLarge) == (what == "bomb"), what
