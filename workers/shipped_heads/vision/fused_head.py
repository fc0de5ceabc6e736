"""Train the fused head: ``python -m workers.shipped_heads.vision.fused_head [--out FOLDER] [--epochs N]``.

Both backbones stay unchanged, so their features are computed once: each statement's tokens, each digit's places. Held
out are a fifth of the digits, and some phrasings of every fact. Two more heads are trained, on the text alone and on
the image alone: their scores are chance.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from workers import settings
from workers.batching.serving import served_models
from workers.models.built_in.fused.fused_network import PLACES, FusedHead
from workers.models.interface.model import Model
from workers.models.sources import model_source
from workers.shipped_heads.vision import digits, statements
from workers.shipped_heads.vision.digits import Digits
from workers.shipped_heads.vision.statements import Statement
from workers.training.data import SEED

LABELS = ("false", "true")

_IMAGES, _EACH = 64, 8  # of a step: this many digits, each with this many statements
_RATE = 1.5e-3
_JUDGED = 4000


class FusedScore(msgspec.Struct, frozen=True):
    """The share of held-out pairs judged rightly: of new digits in known phrasings, and in new phrasings."""

    known_phrasings: float
    new_phrasings: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """Digits with their features, `(digits, places, width)` in half precision, on disk."""

    numbers: NDArray[np.int64]
    places: NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Sayings:
    """Statements with their tokens' features `(statements, tokens, width)`, padded, and the frequency of each with
    each digit.
    """

    of: list[Statement]
    tokens: torch.Tensor
    mask: torch.Tensor
    true_of: NDArray[np.bool_]
    chances: NDArray[np.float64]


def pictures(of: Digits, model: Model, file: Path) -> Pictures:
    """Run the vision backbone over digits, sent as files."""
    from workers.models.built_in.vision.vision_network import VisionEncoder

    if file.is_file():
        return Pictures(of.numbers, np.load(file, mmap_mode="r"))
    network = VisionEncoder(model.spec.folder, {"places"}).eval()
    found = np.lib.format.open_memmap(file, "w+", np.float16, (len(of), PLACES, 1280))
    with torch.inference_mode():
        for start in track(range(0, len(of), 16), description="digits"):
            rows = [model.prepare(_png(image), {}) for image in of.images[start : start + 16]]
            batch = torch.from_numpy(np.stack([row.arrays["pixels"] for row in rows]))
            found[start : start + len(rows)] = network(batch)["places"].half().numpy()
    return Pictures(of.numbers, found)


def sayings(of: list[Statement], model: Model) -> Sayings:
    """Run the text backbone over statements."""
    from workers.models.built_in.text.text_network import TextEncoder

    network = TextEncoder(model.spec.folder, {"tokens.6"}).eval()
    arrays = model.collate([model.prepare(one.text, {}) for one in of])
    mask = torch.from_numpy(arrays["mask"])
    with torch.inference_mode():
        tokens = network(torch.from_numpy(arrays["ids"]).long(), mask)["tokens.6"].clone()
    true_of = np.array([one.true_of for one in of]).T
    return Sayings(of, tokens, mask, true_of, statements.chances(of))


def train(shown: Pictures, said: Sayings, *, epochs: int, blind: str = "") -> FusedHead:
    """Return a trained head. If `blind` to ``text`` or ``image``, it always sees the same text or image."""
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    head = FusedHead(said.tokens.shape[-1], shown.places.shape[-1], len(LABELS))
    steps = epochs * len(shown.numbers) // _IMAGES
    optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps, pct_start=0.1)
    head.train()
    for _ in range(steps):
        at, pairs = _drawn(shown, said, random, _IMAGES, _EACH)
        scores = _scores(head, shown, said, at, pairs, blind)
        truth = torch.from_numpy(said.true_of[shown.numbers[at].repeat(_EACH), pairs.ravel()]).long()
        loss = torch.nn.functional.cross_entropy(scores, truth)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        rate.step()
    return head.eval()


def judged(head: FusedHead, shown: Pictures, said: Sayings, *, blind: str = "") -> float:
    """Return the share of pairs judged rightly, of pictures and statements drawn as in training."""
    random = np.random.default_rng(SEED + 1)
    right = 0
    with torch.inference_mode():
        for _ in range(_JUDGED // (_IMAGES * _EACH) + 1):
            at, pairs = _drawn(shown, said, random, _IMAGES, _EACH)
            found = _scores(head, shown, said, at, pairs, blind).argmax(-1).numpy()
            right += int((found == said.true_of[shown.numbers[at].repeat(_EACH), pairs.ravel()]).sum())
    return right / ((_JUDGED // (_IMAGES * _EACH) + 1) * _IMAGES * _EACH)


def _drawn(
    shown: Pictures, said: Sayings, random: np.random.Generator, images: int, each: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw digits `(images,)` and some statements for each `(images, each)`."""
    by_digit = said.chances.sum(1)
    wanted = random.choice(len(by_digit), images, p=by_digit)
    at = np.array([random.choice(np.flatnonzero(shown.numbers == digit)) for digit in wanted])
    chances = said.chances / by_digit[:, None]
    pairs = np.stack([random.choice(len(said.of), each, p=chances[digit]) for digit in wanted])
    return at, pairs


def _scores(
    head: FusedHead, shown: Pictures, said: Sayings, at: NDArray[np.int64], pairs: NDArray[np.int64], blind: str
) -> torch.Tensor:
    places = torch.from_numpy(shown.places[at]).float()
    chosen = torch.from_numpy(pairs.ravel())
    if blind == "image":
        places = torch.zeros_like(places)
    if blind == "text":
        chosen = torch.zeros_like(chosen)
    scores: torch.Tensor = head(
        said.tokens[chosen], said.mask[chosen], head.seen(places).repeat_interleave(pairs.shape[1], 0)
    )
    return scores


def _png(image: NDArray[np.float32]) -> bytes:
    made = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(made, "PNG")
    return made.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=model_source.BUNDLED / "fused")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--features", type=Path, help="a folder where the digits' features are kept, to be used again")
    given = parser.parse_args()
    console = Console()
    chosen = settings.load(environment={})
    text, vision = (served_models.build(served_models.model_to_load(chosen, name)) for name in ("text", "vision"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.features or Path(temporary)
        parts = zip(("known", "held-out"), digits.read(model_source.cache_folder()), strict=True)
        known, held_out = (pictures(part, vision, folder / f"{name}.npy") for name, part in parts)
        said, new = (sayings(statements.statements(held_out=held), text) for held in (False, True))
        found: dict[str, FusedScore] = {}
        for blind in ("", "text", "image"):
            head = train(known, said, epochs=given.epochs, blind=blind)
            found[blind] = FusedScore(
                judged(head, held_out, said, blind=blind), judged(head, held_out, new, blind=blind)
            )
            console.print(f"{'blind to the ' + blind if blind else 'whole'}: {found[blind]}")
            if not blind:
                _write(head, given.out, found[blind])


def _write(head: FusedHead, folder: Path, score: FusedScore) -> None:
    from workers.models.built_in.multitask import head_file as heads

    heads.save(head, folder / heads.FILE, kind="fused", labels=LABELS, score=msgspec.json.encode(score).decode())


if __name__ == "__main__":
    main()
