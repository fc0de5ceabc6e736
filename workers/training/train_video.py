"""Train a head that reads videos: ``python -m workers.training.train_video [--out FOLDER] [--clips FOLDER --task
NAME]``.

Without clips it trains the built-in `camera-motion`, on clips made of photographs (`workers.training.camera`). A folder
of clips has a folder for each label; a fifth of each is held out, and the head reads appearance as well as motion. The
printed scores are of held-out clips; for `camera-motion`, of clips made from photographs and films that were not
trained on.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from producers.wire.command_line import one_line_errors
from producers.wire.errors import ConfigurationError, InvalidInput
from workers import settings
from workers.models.backends.build import build
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.backends.compiled_network import Network, Source
from workers.models.built_in.multitask import head_file
from workers.models.built_in.text.text_model import BUILTIN_HEADS
from workers.models.built_in.video.video_model import FRAME_SIDE, NUM_FRAMES, centre
from workers.models.built_in.video.video_network import KIND, MotionHead, VideoEncoder, correlations, pairs
from workers.models.sources import model_source
from workers.models.video import frames
from workers.models.video.frame_sampling import FrameSampling
from workers.training import camera, data
from workers.training.camera import Scene
from workers.training.data import SEED

TASK = "camera-motion"

#: Parts that are not trained on: to choose the epoch, and to judge.
VALIDATION = ("flower.jpg", "gravel.png")
TEST = ("astronaut.png", "china.jpg", "coffee.png", "rocket.jpg")
FILMS = ("bigbuckbunny.mp4", "carphone_pristine.mp4")

_EPOCHS = 60
_BATCH_CLIPS = 32

Pixels = NDArray[np.uint8]
Clips = Iterator[tuple[Pixels, str]]
Mirror = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Read:
    """Clips as input of a head: `moved` `(clips, steps, displacements, 5, 5)` and `shown` `(clips, steps, width)`,
    of zero width where appearance is not used.
    """

    moved: torch.Tensor
    shown: torch.Tensor
    labels: tuple[str, ...]


class VideoScore(msgspec.Struct, frozen=True):
    """The score on held-out clips. `shuffled` is the score with frames in random order, which shows whether order
    matters.
    """

    clips: int
    accuracy: float
    majority: float
    shuffled: float


def encoder(cache: Path, *, appearance: bool) -> Network:
    """Return the built-in vision model's backbone, pulled into `cache` if needed; the whole of it for `appearance`.

    It runs on OpenVINO in fp32 where that is installed: on CPUs several times as fast as torch.
    """
    source = model_source.parse(settings.load(environment={}).models["vision"].source, where="models.vision.source")
    folder = model_source.pull(source, cache).folder
    example = {"pixels": torch.zeros((2, FRAME_SIDE, FRAME_SIDE, 3), dtype=torch.uint8)}
    keep = {"map", "pooled"} if appearance else {"map"}
    backend = Backend("openvino") if importlib.util.find_spec("openvino") else REFERENCE
    with tempfile.TemporaryDirectory() as own:
        made = Source(lambda: VideoEncoder(folder, keep).eval(), example, Path(own) / "network")
        return build(backend, made, "cpu")


def read(network: Network, clips: Clips, count: int, what: str) -> Read:
    """Run the backbone over clips."""
    moved, shown, labels = [], [], []
    for pixels, label in track(clips, description=f"encode {what}", total=count):
        with torch.inference_mode():
            features = network({"pixels": torch.from_numpy(pixels)})
            first, second = pairs(torch.tensor([len(pixels)]))
            moved.append(correlations(features["map"], first, second).half())
            shown.append(features.get("pooled", features["map"].new_zeros(len(pixels), 0))[first].half())
        labels.append(label)
    return Read(torch.stack(moved), torch.stack(shown), tuple(labels))


# --- clips ----------------------------------------------------------------------------------------


def made(sources_: Sequence[Scene], count: int, seed: int) -> Clips:
    """Yield clips with all motions by turns."""
    random = np.random.default_rng(seed)
    for number in range(count):
        label = camera.LABELS[number % len(camera.LABELS)]
        yield camera.clip(label, sources_, NUM_FRAMES, FRAME_SIDE, random), label


def scenes(folder: Path, names: Callable[[str], bool]) -> list[Scene]:
    """Return the photographs of these names."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg") and names(path.name))
    return [Scene(path.name, (Image.open(path).convert("RGB"),)) for path in paths]


def films(folder: Path) -> list[Scene]:
    """Return the films with a still camera, frame by frame."""
    found = []
    for name in FILMS:
        content = (folder / name).read_bytes()
        whole = frames.read(content, FrameSampling(100, 1), frames.VideoLimits(), frames.image)
        found.append(Scene(name, tuple(whole)))
    return found


def own_clips(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files under a folder with a folder for each label: the training part, and a held-out fifth of each
    label.
    """
    random = np.random.default_rng(SEED)
    known, held_out = [], []
    for label in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(path for path in label.iterdir() if path.is_file())
        if len(paths) < 5:
            raise ConfigurationError(f"{label}: has {len(paths)} clips; give it five or more")
        held = set(random.permutation(len(paths))[: max(1, len(paths) // 5)].tolist())
        known += [path for n, path in enumerate(paths) if n not in held]
        held_out += [path for n, path in enumerate(paths) if n in held]
    if len({path.parent for path in known}) < 2:
        raise ConfigurationError(f"{folder}: needs a folder of clips for each of two labels or more")
    return known, held_out


def from_files(paths: Sequence[Path]) -> Clips:
    """Yield the frames of files, as the model reads them, with the names of their folders. Raises
    ConfigurationError.
    """
    for path in paths:
        try:
            pixels = frames.read(path.read_bytes(), FrameSampling(NUM_FRAMES), frames.VideoLimits(), centre)
        except InvalidInput as error:
            raise ConfigurationError(f"{path}: {error}") from error
        yield np.stack(pixels), path.parent.name


# --- training -------------------------------------------------------------------------------------


def fit(known: Read, unseen: Read, console: Console, mirror: Mirror | None = None) -> MotionHead:
    """Train a head, and return it at its best epoch on `unseen`. With `mirror`, half of the clips
    are mirrored each time.
    """
    torch.manual_seed(SEED)
    labels = tuple(sorted(set(known.labels)))
    module = MotionHead(len(labels), appearance=known.shown.shape[-1])
    wanted = torch.tensor([labels.index(label) for label in known.labels])
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=1e-2)
    batches = -(-len(wanted) // _BATCH_CLIPS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=_EPOCHS * batches)
    best, kept = -1.0, module.state_dict()
    for epoch in range(_EPOCHS):
        module.train()
        order = torch.randperm(len(wanted))
        for start in range(0, len(order), _BATCH_CLIPS):
            chosen = order[start : start + _BATCH_CLIPS]
            clips, right = known.moved[chosen], wanted[chosen]
            if mirror:
                clips, right = mirror(clips, right)
            scores = _scores(module, clips, known.shown[chosen])
            loss = torch.nn.functional.cross_entropy(scores, right, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        accuracy = _accuracy(module, unseen, labels)
        if accuracy >= best:
            best, kept = accuracy, {name: tensor.clone() for name, tensor in module.state_dict().items()}
        console.print(f"epoch {epoch + 1}: {accuracy:.1%} of {len(unseen.labels)}, loss {loss.item():.3f}")
    module.load_state_dict(kept)
    return module.eval()


def mirrored(moved: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips of camera motions, some mirrored and some upside down, and their labels."""
    reach = round((moved.shape[2] // 2) ** 0.5)
    by_place = moved.view(
        *moved.shape[:2], 2, reach, reach, *moved.shape[3:]
    )  # scales, displacements down and across; then places
    for axes, labels in (((4, 6), _ACROSS), ((3, 5), _DOWN)):
        turned = torch.rand(len(wanted)) < 0.5
        by_place = torch.where(turned.view(-1, 1, 1, 1, 1, 1, 1), by_place.flip(axes), by_place)
        wanted = torch.where(turned, labels[wanted], wanted)
    return by_place.reshape(moved.shape), wanted


def _swapped(swaps: Mapping[str, str]) -> torch.Tensor:
    return torch.tensor([camera.LABELS.index(swaps.get(label, label)) for label in camera.LABELS])


_ROLLS = {"roll-left": "roll-right", "roll-right": "roll-left"}
_ACROSS = _swapped(_ROLLS | {"pan-left": "pan-right", "pan-right": "pan-left"})
_DOWN = _swapped(_ROLLS | {"tilt-up": "tilt-down", "tilt-down": "tilt-up"})


def _scores(module: MotionHead, moved: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    steps = torch.full((len(moved),), moved.shape[1])
    return module.read(moved.flatten(0, 1), shown.float().flatten(0, 1), steps)


def _accuracy(module: MotionHead, clips: Read, labels: Sequence[str]) -> float:
    module.eval()
    with torch.inference_mode():
        best = _scores(module, clips.moved, clips.shown).argmax(-1).tolist()
    return float(np.mean([labels[place] == label for place, label in zip(best, clips.labels, strict=True)]))


def score(module: MotionHead, network: Network, clips: Sequence[tuple[Pixels, str]], what: str) -> VideoScore:
    """Judge a head on clips, as they are and shuffled."""
    random = np.random.default_rng(SEED)
    labels = tuple(sorted({label for _, label in clips})) if what == "own" else camera.LABELS
    disorder = ((pixels[random.permutation(len(pixels))], label) for pixels, label in clips)
    in_order = _accuracy(module, read(network, iter(clips), len(clips), what), labels)
    shuffled = _accuracy(module, read(network, disorder, len(clips), f"{what}, shuffled"), labels)
    counts: Mapping[str, int] = Counter(label for _, label in clips)
    return VideoScore(len(clips), in_order, max(counts.values()) / len(clips), shuffled)


def train_camera(out: Path, cache: Path, console: Console, *, count: int = 900) -> None:
    """Write the head of `camera-motion` under `out`, and print its score."""
    folder = data.pull("scenes", cache)
    network = encoder(cache, appearance=False)
    kept_back = (*VALIDATION, *TEST)
    known = read(network, made(scenes(folder, lambda name: name not in kept_back), count, 1), count, "training")
    fewer = count // 5
    unseen = read(network, made(scenes(folder, lambda name: name in VALIDATION), fewer, 2), fewer, "validation")
    module = fit(known, unseen, console, mirrored)
    head_file.save(module, out / TASK / head_file.FILE, kind=KIND, labels=camera.LABELS, seed=SEED)
    for what, judged in (
        ("photographs", scenes(folder, lambda name: name in TEST)),
        ("films", films(folder)),
    ):
        found = score(module, network, list(made(judged, fewer, 3)), what)
        console.print(f"{what}: {found}")


def train_own(clips: Path, task: str, out: Path, cache: Path, console: Console) -> VideoScore:
    """Write the head of a task under `out`, trained on a folder of clips, and return its score on the held-out ones."""
    known, held_out = own_clips(clips)
    network = encoder(cache, appearance=True)
    learnt = read(network, from_files(known), len(known), "training")
    # too few clips to hold some out for choosing an epoch: the last epoch is taken, where training is steadiest
    module = fit(learnt, learnt, console)
    labels = tuple(sorted(set(learnt.labels)))
    head_file.save(module, out / task / head_file.FILE, kind=KIND, labels=labels, seed=SEED)
    return score(module, network, list(from_files(held_out)), "own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUILTIN_HEADS, help="folder for the head (default: %(default)s)")
    parser.add_argument("--clips", type=Path, help="a folder with a folder of videos for each label")
    parser.add_argument("--task", help="the task's name, with --clips")
    parser.add_argument("--count", type=int, default=900, help="clips to make, without --clips (default: %(default)s)")
    asked = parser.parse_args()
    if bool(asked.clips) != bool(asked.task):
        parser.error("--clips and --task go together")
    console, cache = Console(), model_source.cache_folder()
    if asked.clips:
        console.print(str(train_own(asked.clips, asked.task, asked.out, cache, console)))
    else:
        train_camera(asked.out, cache, console, count=asked.count)


if __name__ == "__main__":
    with one_line_errors():
        main()
