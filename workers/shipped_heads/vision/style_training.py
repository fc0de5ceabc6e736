"""Train the built-in style network: ``python -m workers.shipped_heads.vision.style_training [--out FOLDER] [--steps
N]``.

It learns to redraw photographs by their features in MobileNetV2, trained on ImageNet: features at each place stay those
of the photograph, and their correlations become those of the style (Gatys, Ecker and Bethge, 2016; Johnson, Alahi and
Fei-Fei, 2016). The weights are written every few hundred steps, so that a run can be cut short.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch.nn import functional

from workers.models.built_in.vision.style_network import StyleNetwork
from workers.models.sources import model_source
from workers.shipped_heads.vision.styles import STYLES
from workers.training import data
from workers.training.data import SEED

BATCH = 3
SIDE = 128

#: The compared layers, by the numbers of the blocks whose expansion is taken; 0 is the stem.
_STYLE_LAYERS = (0, 1, 2, 4, 7)
_CONTENT_LAYER = 4

#: The weight of a style against the content.
_STRENGTH: Mapping[str, float] = {"brush": 25.0, "mosaic": 40.0, "pencil": 8.0}
_SMOOTH = 0.3
_SAVE_EVERY = 200

_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
_STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


def source(kind: str, name: str) -> Path:
    """Return the folder of a built-in source, pulled if needed."""
    return data.pull_built_in(kind, name, model_source.cache_folder()).folder


class Features:
    """MobileNetV2's features of pictures of 0 to 1, by layer."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageClassification

        model = AutoModelForImageClassification.from_pretrained(source("models", "vision")).mobilenet_v2.eval()
        model.requires_grad_(requires_grad=False)
        self._stem = model.conv_stem
        self._blocks = model.layer[: max(_STYLE_LAYERS)]

    def __call__(self, pictures: torch.Tensor) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        rows = self._stem.first_conv((pictures - _MEAN) / _STD)
        found[0] = rows
        rows = self._stem.reduce_1x1(self._stem.conv_3x3(rows))
        for number, block in enumerate(self._blocks, start=1):
            found[number] = block.expand_1x1(rows)
            if number < max(_STYLE_LAYERS):
                rows = block(rows)
        return found


def together(features: torch.Tensor) -> torch.Tensor:
    """Return the statistics of a layer's features over all places: their means, and Gram's matrix, `(rows, …)`."""
    flat = features.flatten(2)
    gram = flat @ flat.transpose(1, 2) / flat.shape[-1]
    return torch.cat([gram.flatten(1) / flat.shape[1] ** 0.5, flat.mean(-1)], 1)


class Loss:
    """The distance of drawn pictures from the photographs and the styles; each part is 1 where nothing fits."""

    def __init__(self, features: Features, styles: Sequence[torch.Tensor]) -> None:
        self._features = features
        with torch.no_grad():
            seen = [features(style) for style in styles]
            self._styles = {
                layer: torch.cat([together(one[layer]).mean(0, keepdim=True) for one in seen])
                for layer in _STYLE_LAYERS
            }

    def __call__(self, drawn: torch.Tensor, photographs: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        found = self._features(drawn)
        with torch.no_grad():
            wanted = self._features(photographs)[_CONTENT_LAYER]
        content = functional.mse_loss(found[_CONTENT_LAYER], wanted) / wanted.var()
        strengths = torch.tensor([_STRENGTH[name] for name in STYLES])[styles]
        style = torch.zeros(len(drawn))
        for layer, known in self._styles.items():
            target = known[styles]
            far = (together(found[layer]) - target).square().sum(1) / target.square().sum(1)
            style = style + far / len(self._styles)
        rough = (drawn[..., 1:] - drawn[..., :-1]).abs().mean() + (drawn[..., 1:, :] - drawn[..., :-1, :]).abs().mean()
        return content + (strengths * style).mean() + _SMOOTH * rough


def photographs(random: Random) -> Iterator[torch.Tensor]:
    """Yield batches of squares cut from the photographs, `(rows, 3, side, side)` of 0 to 1."""
    folder = source("data", "photographs")
    names = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    opened = [Image.open(path).convert("RGB") for path in names]
    while True:
        rows = []
        for _ in range(BATCH):
            image = random.choice(opened)
            side = random.randint(min(160, *image.size), min(image.size))
            left, top = random.randint(0, image.width - side), random.randint(0, image.height - side)
            cut = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
            rows.append(np.asarray(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else cut))
        yield torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255


def styles(side: int = 2 * SIDE) -> list[torch.Tensor]:
    """Return the styles' pictures, each cut into squares `(squares, 3, side, side)` of 0 to 1."""
    found = []
    for draw in STYLES.values():
        whole = torch.from_numpy(draw().copy()).permute(2, 0, 1)[None] / 255
        size = whole.shape[-1] - side
        found.append(
            torch.cat([whole[..., top : top + side, left : left + side] for top in (0, size) for left in (0, size)])
        )
    return found


def save(network: StyleNetwork, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, out / "model.safetensors")
    config: dict[str, Any] = {"model_type": "argosy-style", "styles": list(STYLES)}
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def train(out: Path, steps: int, console: Console) -> None:
    """Train the network and write it to the folder `out`."""
    torch.manual_seed(SEED)
    random = Random(SEED)  # noqa: S311 - repeatable, no secret
    network, loss = StyleNetwork(len(STYLES)), Loss(Features(), styles())
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started, losses = time.monotonic(), []
    for step, batch in zip(range(steps), photographs(random), strict=False):
        chosen = (torch.arange(BATCH) + step) % len(STYLES)
        found = loss(network(batch, chosen), batch, chosen)
        optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(found.item())
        if step % 25 == 24:
            console.print(f"{step + 1}: {np.mean(losses[-25:]):.3f}, {time.monotonic() - started:.0f} s")
        if step % _SAVE_EVERY == _SAVE_EVERY - 1 or step == steps - 1:
            save(network, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=model_source.BUNDLED / "style", help="folder (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    train(asked.out, asked.steps, Console())


if __name__ == "__main__":
    main()
