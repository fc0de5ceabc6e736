"""Pictures for benchmarks.catalogue: what is drawn and redrawn, the plain loops over the same networks, and how good
it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.models.sources import model_source

if TYPE_CHECKING:
    from producers import Client

Plain = Callable[[Sequence[Any], int], object]

#: As many steps as the digits need, in the fleet and in diffusers' pipeline alike.
STEPS = {"num_inference_steps": 20, "guidance_scale": 3.0}
SIDE = 256


def prompts(count: int) -> list[Any]:
    from workers.shipped_heads.vision.digits import WORDS

    return [f"a {('thin', 'thick')[n // 10 % 2]} handwritten {WORDS[n % 10]}" for n in range(count)]


def drawn_by_hand(folder: Path) -> Plain:
    """diffusers' own pipeline, prompt by prompt, or in batches."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        parts = [list(inputs[start : start + batch_size]) for start in range(0, len(inputs), batch_size)]
        return [picture for part in parts for picture in pipeline(part, **STEPS).images]

    return run


def digits_read(client: Client) -> tuple[str, float, float]:
    """Have the drawn digits read by a network that learnt to read real ones. Who draws whatever is right once in
    ten.
    """
    import numpy as np
    from PIL import Image

    from workers.shipped_heads.vision import digits, picture_scores

    network = picture_scores.reader(digits.read(model_source.cache_folder())[0])
    asked = prompts(100)
    job = client.submit_many("picture", asked, params=STEPS)
    job.wait(timeout_s=600)
    images = np.zeros((len(asked), digits.SIDE, digits.SIDE), dtype=np.float32)
    for row in job.results():
        with Image.open(io.BytesIO(client.read_file(row.output["image"]))) as image:
            images[row.seq] = np.asarray(image.convert("L"), dtype=np.float32) / 255
    right = picture_scores.right(network, images, np.arange(len(asked)) % 10)
    return "100 digits read as asked for:", right, 0.1


def small_photographs(count: int) -> list[Any]:
    from PIL import Image

    from benchmarks.tasks.entries import pictures

    found = []
    for file in pictures(count):
        made = io.BytesIO()
        with Image.open(io.BytesIO(file)) as image:
            image.resize((SIDE, SIDE)).save(made, "JPEG", quality=90)
        found.append(made.getvalue())
    return found


def styled_by_hand(folder: Path) -> Plain:
    """The same network, one photograph after the other or eight at once, each written as PNG."""
    import torch
    from safetensors.torch import load_file

    from workers.models.built_in.vision.style_network import StyleNetwork
    from workers.models.interface import output_files as made

    network = StyleNetwork(3).eval()
    network.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            rows = torch.stack([_rows(file) for file in inputs[start : start + batch_size]])
            with torch.inference_mode():
                drawn = network(rows.permute(0, 3, 1, 2) / 255, torch.zeros(len(rows), dtype=torch.int64))
            pixels = (drawn * 255).round().byte().permute(0, 2, 3, 1).numpy()
            found += [made.picture(one, "png") for one in pixels]
        return found

    return run


def detected_by_hand(folder: Path) -> Plain:
    """The same network, photographs one by one or eight at once; boxes of one object stay as they come."""
    import torch

    from workers.models.built_in.vision.detector import SIDE as SQUARE
    from workers.models.built_in.vision.detector_network import DetectorNetwork

    network = DetectorNetwork(folder).eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            rows = torch.stack([_rows(file, SQUARE) for file in inputs[start : start + batch_size]])
            with torch.inference_mode():
                found += network(rows)["found"].tolist()
        return found

    return run


def _rows(file: bytes, side: int | None = None) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        rgb = image.convert("RGB")
        return torch.from_numpy(np.asarray(rgb.resize((side, side)) if side else rgb).copy())
