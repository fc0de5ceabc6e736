"""Judge the built-in picture model: ``python -m workers.shipped_heads.vision.picture_scores [FOLDER] [--each N]``.

A small network learns to read the digits of the model's training; its accuracy on held-out digits is its limit. Its
accuracy on pictures drawn to prompts, by the serving code, shows whether the pictures match their prompts.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn import functional

from producers.wire.catalogue import Catalogue
from workers.models.diffusion.diffusion_model import DiffusionModel
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source
from workers.shipped_heads.vision import digits
from workers.shipped_heads.vision.digits import WORDS, Digits
from workers.training.data import SEED

#: The model's default options; as in builtin.toml's example and docs/models.md.
PARAMS = {"num_inference_steps": 20, "guidance_scale": 3.0}

Images = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of pictures that are read right: real held-out ones, drawn ones, and drawn ones that show their adjective.

    `distance` is the mean distance (root of the mean square, of 1) of a drawn picture to the most similar training
    picture, `held_out_distance` that of real held-out ones: a model that copies would be far below it.
    """

    held_out: float
    drawn: float
    thick_over_thin: float
    slanted_over_upright: float
    distance: float
    held_out_distance: float


def reader(examples: Digits, epochs: int = 8) -> nn.Module:
    """Return a network that reads digits, trained on slightly moved `examples`."""
    torch.manual_seed(SEED)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 64, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    random = np.random.default_rng(SEED)
    for _ in range(epochs):
        for places in np.array_split(random.permutation(len(examples)), len(examples) // 64):
            moved = np.roll(examples.images[places], random.integers(-2, 3, 2), axis=(1, 2))
            loss = functional.cross_entropy(network(_rows(moved)), torch.from_numpy(examples.numbers[places]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def right(network: nn.Module, images: Images, numbers: NDArray[np.int64]) -> float:
    with torch.inference_mode():
        read = network(_rows(images)).argmax(-1).numpy()
    return float((read == numbers).mean())


def drawn(folder: Path, prompts: Sequence[str]) -> Images:
    """Return pictures `(prompts, 32, 32)` of 0 to 1, drawn by the model in `folder`, the n-th with the seed n."""
    catalogue = Catalogue({}).with_models({"pictures": {"tasks": {"picture": "text-to-image"}}}, where="here")
    model = DiffusionModel(ModelSpec("pictures", folder, "1", catalogue.tasks, {"step_rows": 32}))
    model.load("cpu")
    task = catalogue.tasks["picture"]
    params = [catalogue.check_params(task, {**PARAMS, "seed": seed}, field="params") for seed, _ in enumerate(prompts)]
    rows = [model.prepare(prompt, {"picture": own}) for prompt, own in zip(prompts, params, strict=True)]
    outputs = model.forward(model.collate(rows), {"picture": np.arange(len(rows))})["picture"]
    found = []
    for output, own, row in zip(outputs, params, rows, strict=True):
        file = model.finish(task, output, own, row)["image"]
        with Image.open(io.BytesIO(file.data)) as image:
            found.append(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    return np.stack(found)


def judge(folder: Path, each: int) -> Scores:
    """Return the scores of the model in `folder`, of `each` pictures of each digit."""
    examples, held_out = digits.read(model_source.cache_folder())
    network = reader(examples)
    random = Random(SEED)  # noqa: S311 - repeatable, no secret
    numbers = np.repeat(np.arange(10), each)
    plain = drawn(folder, [digits.prompt(int(number), (), random) for number in numbers])
    few = max(1, each // 2)
    ways = {adjective: [f"a {adjective} {word}" for word in WORDS] * few for adjective in digits.ADJECTIVES}
    made = {adjective: drawn(folder, prompts) for adjective, prompts in ways.items()}
    return Scores(
        held_out=right(network, held_out.images, held_out.numbers),
        drawn=right(network, plain, numbers),
        thick_over_thin=float((digits.ink(made["thick"]) > digits.ink(made["thin"])).mean()),
        slanted_over_upright=float((digits.slant(made["slanted"]) > digits.slant(made["upright"])).mean()),
        distance=_distance(plain, examples.images),
        held_out_distance=_distance(held_out.images, examples.images),
    )


def _distance(images: Images, known: Images) -> float:
    flat, others = images.reshape(len(images), -1), known.reshape(len(known), -1)
    squares = (flat**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * flat @ others.T
    return float(np.sqrt(squares.min(1).clip(0) / flat.shape[1]).mean())


def _rows(images: Images) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images))[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=model_source.BUNDLED / "pictures")
    parser.add_argument("--each", type=int, default=50, help="pictures of each digit (default: %(default)s)")
    asked = parser.parse_args()
    Console().print(judge(asked.folder, asked.each))


if __name__ == "__main__":
    main()
