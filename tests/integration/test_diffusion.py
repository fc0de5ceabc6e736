"""Pictures made by diffusion: those of diffusers' own pipelines, whoever shares the steps; and what is refused."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from producers.wire.errors import ConfigurationError
from producers.wire.messages import SeedInput
from tests import tiny_diffusers as tiny
from tests.serving import Served

Made = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

#: What another order of sums may change of a pixel, of 255: it is rounded once, at the end.
TOLERANCE = 1


@pytest.fixture(autouse=True)
def quiet() -> None:
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def pixels(output: dict[str, Any]) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(output["image"].data)) as image:
        return np.asarray(image, dtype=np.int16)


def pipeline(folder: Path, name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name).from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def assert_same(found: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(pixels(found), np.asarray(expected, dtype=np.int16), atol=TOLERANCE)


PROMPTS = [
    ("a red boat", {"seed": 1, "num_inference_steps": 7}),
    ("a lighthouse at night", {"seed": 2, "num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": "fog"}),
    ("the same, larger", {"seed": 3, "num_inference_steps": 7, "height": 24, "width": 16}),
    ("without guidance", {"seed": 4, "num_inference_steps": 5, "guidance_scale": 0.0}),
]


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_pictures_are_those_of_the_pipeline_alone_and_in_company(made: Made, scheduler: str) -> None:
    """Each has its own size, steps and guidance, and schedulers that remember earlier steps remember those of one
    picture.
    """
    folder = made(tiny.stable_diffusion, scheduler)
    served = Served(folder, {"draw": "text-to-image"}, step_rows=3).load()
    theirs = pipeline(folder, "StableDiffusionPipeline")
    expected = [
        theirs(prompt, generator=generator(params["seed"]), **{k: v for k, v in params.items() if k != "seed"}).images[
            0
        ]
        for prompt, params in PROMPTS
    ]
    for (prompt, params), picture in zip(PROMPTS, expected, strict=True):
        [alone] = served.ask("draw", [prompt], **params)
        assert_same(alone, picture)
        assert alone["seed"] == params["seed"]
    together = drawn_together(served, PROMPTS)
    for found, picture in zip(together, expected, strict=True):
        assert_same(found, picture)


def drawn_together(served: Served, asked: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Draw pictures of different parameters in the same steps, each joining a step after the one before."""
    task, model = served.task("draw"), served.model
    rows = []
    for prompt, params in asked:
        own = {"draw": served.catalogue.check_params(task, params, field="params")}
        rows.append((model.prepare(prompt, own), own["draw"]))
    found: dict[Any, Any] = {}
    for place, (prepared, _) in enumerate(rows):
        model.join(place, "draw", model.collate([prepared])["draw"][0], urgency=0)
        found |= {one.key: one.output for one in model.step()}
    while model.busy:
        found |= {one.key: one.output for one in model.step()}
    from workers.models.interface import ragged

    return [
        model.finish(task, ragged.pack([found[place]])[0], params, prepared)
        for place, (prepared, params) in enumerate(rows)
    ]


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_unprompted_pictures_are_those_of_the_pipeline(made: Made, kind: str) -> None:
    """Ancestral sampling draws noise at every step: each picture draws its own."""
    folder = made(tiny.unprompted, kind)
    served = Served(folder, {"draw": "unconditional-image-generation"}).load()
    theirs = pipeline(folder, f"{kind}Pipeline")
    expected = [theirs(generator=generator(seed), num_inference_steps=6).images[0] for seed in (5, 6, 7)]
    for seed, picture in zip((5, 6, 7), expected, strict=True):
        [alone] = served.ask("draw", [seed], num_inference_steps=6)
        assert_same(alone, picture)
    for found, picture in zip(served.ask("draw", [5, 6, 7], num_inference_steps=6), expected, strict=True):
        assert_same(found, picture)


def test_a_folder_that_reads_prompts_makes_pictures_without_one_too(made: Made) -> None:
    folder = made(tiny.stable_diffusion, "DDIMScheduler")
    served = Served(folder, {"draw": "text-to-image", "any": "unconditional-image-generation"}).load()
    theirs = pipeline(folder, "StableDiffusionPipeline")
    [found] = served.ask("any", [9], num_inference_steps=3)
    assert_same(found, theirs("", generator=generator(9), num_inference_steps=3, guidance_scale=0).images[0])


def test_without_a_seed_one_is_drawn_and_told(made: Made) -> None:
    served = Served(made(tiny.stable_diffusion, "DDIMScheduler"), {"draw": "text-to-image"}).load()
    first, second = served.ask("draw", ["a boat", "a boat"], num_inference_steps=2)
    assert first["seed"] != second["seed"]
    [again] = served.ask("draw", ["a boat"], num_inference_steps=2, seed=first["seed"], format="webp")
    assert again["image"].media_type == "image/webp"
    [same] = served.ask("draw", ["a boat"], num_inference_steps=2, seed=first["seed"])
    assert_same(same, pixels(first))


def test_a_checker_that_came_with_the_folder_is_heeded(made: Made) -> None:
    served = Served(made(tiny.stable_diffusion, "DDIMScheduler", checked=True), {"draw": "text-to-image"}).load()
    [found] = served.ask("draw", ["a boat"], num_inference_steps=1)
    assert found["flagged"]
    assert not pixels(found).any()


def test_a_picture_that_nobody_wants_leaves_and_the_others_go_on(made: Made) -> None:
    served = Served(made(tiny.stable_diffusion, "DDIMScheduler"), {"draw": "text-to-image"}).load()
    params = {"draw": served.catalogue.check_params(served.task("draw"), {"num_inference_steps": 3}, field="params")}
    for place in range(2):
        row = served.model.collate([served.model.prepare("a boat", params)])["draw"][0]
        served.model.join(place, "draw", row, urgency=0)
    served.model.step()
    served.model.leave(0)
    left = [one.key for _ in range(2) for one in served.model.step()]
    assert (left, served.model.busy) == ([1], False)


def test_who_is_more_urgent_is_drawn_first(made: Made) -> None:
    served = Served(made(tiny.stable_diffusion, "DDIMScheduler"), {"draw": "text-to-image"}, step_rows=1).load()
    params = {"draw": served.catalogue.check_params(served.task("draw"), {"num_inference_steps": 3}, field="params")}
    row = served.model.collate([served.model.prepare("a boat", params)])["draw"][0]
    served.model.join("bulk", "draw", row, urgency=9)
    served.model.step()
    served.model.join("interactive", "draw", row, urgency=0)
    ended = []
    while served.model.busy:
        ended += [one.key for one in served.model.step()]
    assert ended == ["interactive", "bulk"]


def trained_on(folder: Path, steps: int) -> Path:
    """Have a folder say that its network knows so many steps."""
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": steps}))
    return folder


def test_a_network_that_knows_few_steps(tmp_path: Path) -> None:
    """It takes as many as it knows; who asks for more fails alone, though others are being drawn."""
    folder = trained_on(tiny.unprompted(tmp_path / "few"), 10)
    served = Served(folder, {"draw": "unconditional-image-generation"}).load()
    theirs = pipeline(folder, "DDPMPipeline")
    [found] = served.ask("draw", [3])
    assert_same(found, theirs(generator=generator(3), num_inference_steps=10).images[0])
    params = [
        served.catalogue.check_params(served.task("draw"), {"num_inference_steps": n}, field="p") for n in (4, 11)
    ]
    good, bad = (served.model.prepare(SeedInput(3), {"draw": own}) for own in params)
    served.model.join("good", "draw", served.model.collate([good])["draw"][0], urgency=3)
    served.model.step()
    with pytest.raises(ValueError, match="num_inference_steps"):
        served.model.join("bad", "draw", served.model.collate([bad])["draw"][0], urgency=3)
    assert [one.key for _ in range(3) for one in served.model.step()] == ["good"]


def test_what_is_not_a_number_is_no_picture(tmp_path: Path) -> None:
    import torch

    served = Served(tiny.unprompted(tmp_path / "broken", "DDIM"), {"draw": "unconditional-image-generation"}).load()
    unet = served.model.engine._networks.pipeline.unet
    with torch.no_grad():
        unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not numbers"):
        served.ask("draw", [3], num_inference_steps=2)


# --- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_drawn_is_refused_before_it_is_computed(made: Made) -> None:
    served = Served(made(tiny.stable_diffusion, "DDIMScheduler"), {"draw": "text-to-image"}, max_pixels=1024)
    refusals = {
        "has 32 tokens, over 24": ("abcdefghijklmnopqrstuvwxyz1234", {}),
        r"params.negative_prompt: has 32 tokens": ("a", {"negative_prompt": "abcdefghijklmnopqrstuvwxyz1234"}),
        "params.height: is 20, not a multiple of 8": ("a", {"height": 20}),
        "64 x 64 are over 1,024 pixels": ("a", {"height": 64, "width": 64}),
        "`num_inference_steps` must be 1 or more": ("a", {"num_inference_steps": 0}),
        "`num_inference_steps` must be 1000 or less": ("a", {"num_inference_steps": 1001}),
        "`guidance_scale` must be 0 to 100": ("a", {"guidance_scale": -1}),
        "`seed` must be 0 to": ("a", {"seed": -1}),
        "is empty": (" ", {}),
    }
    for message, (prompt, params) in refusals.items():
        assert message in str(served.refusal("draw", prompt, **params))
    [only_emoji] = [
        served.model.prepare("\U0001f600", {"draw": served.catalogue.check_params(served.task("draw"), {}, field="p")})
    ]
    assert only_emoji.size > 0


def test_a_seed_is_a_number(made: Made) -> None:
    served = Served(made(tiny.unprompted, "DDIM"), {"draw": "unconditional-image-generation"})
    for value in (-1, 2**53, "seven", 1.5, True, None):
        assert "must be an integer from 0 to" in str(served.refusal("draw", value))
    for value in (7, "7", {"seed": 7}):
        assert served.content("draw", value).seed == 7
    assert "supports 16 x 16 only" in str(served.refusal("draw", 7, width=32))


def test_folders_that_cannot_be_served_are_named_at_the_start(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="DDIMPipeline reads no prompts; text-to-image needs them"):
        _ = Served(made(tiny.unprompted, "DDIM"), {"draw": "text-to-image"}).model.revision
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ConfigurationError, match="StableDiffusionXLPipeline is not supported; use one of "):
        _ = Served(tmp_path, {"draw": "text-to-image"}).model.revision
    with pytest.raises(ConfigurationError, match="not an option; the options are: max_pixels, step_rows"):
        _ = Served(made(tiny.unprompted, "DDIM"), {"draw": "unconditional-image-generation"}, rows=1).model.revision
    with pytest.raises(ConfigurationError, match="step_rows: must be a whole number, 1 or more, not 'all'"):
        _ = Served(
            made(tiny.unprompted, "DDIM"), {"draw": "unconditional-image-generation"}, step_rows="all"
        ).model.revision
