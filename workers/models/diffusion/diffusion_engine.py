"""Continuous batching of pictures: each step sends the chosen pictures through the denoiser, at different timesteps.

Each picture has its own scheduler and generator, so the result does not depend on its neighbours. Only pictures of the
same size share a pass. Pictures join and leave between two steps, the more urgent first, so that long requests do not
delay short requests.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workers.models.diffusion.diffusion_networks import DiffusionNetworks
from workers.models.diffusion.image_request import Drawn, Wanted
from workers.models.interface import step_rota
from workers.models.interface.stepwise import StepResult


@dataclass(eq=False, slots=True)
class Picture:
    """A picture in progress; `at` is the number of completed steps. `step_rota` uses `urgency` to `kept_until`."""

    key: Hashable
    wanted: Wanted
    urgency: int
    number: int
    scheduler: Any
    generator: torch.Generator | None = None
    latents: torch.Tensor | None = None
    told: torch.Tensor | None = None
    told_not: torch.Tensor | None = None
    at: int = 0
    forward_s: float = 0.0
    steps: int = 0
    waited: int = 0
    kept_until: int = 0

    @property
    def begun(self) -> bool:
        return self.latents is not None

    @property
    def ended(self) -> bool:
        return self.begun and self.at == len(self.scheduler.timesteps)

    @property
    def time(self) -> torch.Tensor:
        return torch.as_tensor(self.scheduler.timesteps[self.at])

    @property
    def state(self) -> torch.Tensor:
        assert self.latents is not None, "_begin() comes before the first step"
        return self.latents


class DiffusionEngine:
    """All pictures at the device. A step has up to `rows` pictures. Not thread-safe."""

    def __init__(self, networks: DiffusionNetworks, rows: int) -> None:
        self._networks = networks
        self._rows = rows
        self._pictures: dict[Hashable, Picture] = {}
        taken = inspect.signature(networks.pipeline.scheduler.step).parameters
        self._takes_generator = "generator" in taken

    def __len__(self) -> int:
        return len(self._pictures)

    def join(self, key: Hashable, wanted: Wanted, *, urgency: int, number: int) -> None:
        """Add a picture. Raises its scheduler's error for a bad number of steps, which in a step would fail all
        pictures.
        """
        self._pictures[key] = Picture(key, wanted, urgency, number, self._networks.scheduler(wanted.steps))

    def leave(self, key: Hashable) -> None:
        self._pictures.pop(key, None)

    def clear(self) -> None:
        self._pictures.clear()

    @torch.inference_mode()
    def step(self) -> list[StepResult]:
        """Take a step and return the finished pictures."""
        chosen = step_rota.choose(list(self._pictures.values()), self._rows)
        started = time.perf_counter()
        self._begin([picture for picture in chosen if not picture.begun])
        for alike in _alike(chosen):
            self._advance(alike)
        done = [picture for picture in chosen if picture.ended]
        drawn = [
            (picture, one) for alike in _alike(done) for picture, one in zip(alike, self._draw(alike), strict=True)
        ]
        each_s = (time.perf_counter() - started) / len(chosen)
        for picture in chosen:
            picture.forward_s += each_s
        return [self._stepped(picture, one) for picture, one in drawn]

    def _stepped(self, picture: Picture, drawn: Drawn) -> StepResult:
        self.leave(picture.key)
        output = {name: getattr(drawn, name) for name in drawn.__struct_fields__}
        return StepResult(picture.key, output=output, forward_s=picture.forward_s)

    def _begin(self, new: Sequence[Picture]) -> None:
        """Draw the pictures' noise, and encode all their prompts at once."""
        if not new:
            return
        guided = [picture for picture in new if picture.wanted.guided]
        prompts = [picture.wanted.prompt for picture in new] + [picture.wanted.negative for picture in guided]
        told = self._networks.read(prompts)
        for place, picture in enumerate(new):
            wanted = picture.wanted
            noise, picture.generator = self._networks.noise(wanted.seed, wanted.height, wanted.width)
            picture.latents = noise * picture.scheduler.init_noise_sigma
            picture.told = None if told is None else told[place]
        for place, picture in enumerate(guided, start=len(new)):
            picture.told_not = None if told is None else told[place]

    def _advance(self, alike: Sequence[Picture]) -> None:
        """Take a step with pictures of the same size. A guided picture has a second row, for its negative prompt."""
        guided = [picture for picture in alike if picture.wanted.guided]
        both = [*alike, *guided]
        rows = torch.cat([_scaled(picture) for picture in both])
        times = torch.stack([picture.time for picture in both])
        found = self._networks.denoise(rows, times, _stacked(alike, guided))
        unlike = {picture.number: row for picture, row in zip(guided, found[len(alike) :], strict=True)}
        for picture, own in zip(alike, found[: len(alike)], strict=True):
            away = unlike.get(picture.number)
            noise = own if away is None else away + picture.wanted.guidance * (own - away)
            more = {"generator": picture.generator} if self._takes_generator else {}
            stepped = picture.scheduler.step(noise[None], picture.time, picture.state, **more, return_dict=False)
            picture.latents = stepped[0]
            picture.at += 1

    def _draw(self, alike: Sequence[Picture]) -> Iterator[Drawn]:
        images, flagged = self._networks.draw(torch.cat([picture.state for picture in alike]))
        for image, flag in zip(images, flagged, strict=True):
            height, width, channels = image.shape
            yield Drawn(image.tobytes(), height, width, channels, flag)


def _alike(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Yield the pictures grouped by size."""
    sizes: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        sizes.setdefault((picture.wanted.height, picture.wanted.width), []).append(picture)
    yield from sizes.values()


def _scaled(picture: Picture) -> torch.Tensor:
    scaled = picture.scheduler.scale_model_input(picture.state, picture.time)
    return torch.as_tensor(scaled)


def _stacked(alike: Sequence[Picture], guided: Sequence[Picture]) -> torch.Tensor | None:
    told = [picture.told for picture in alike] + [picture.told_not for picture in guided]
    if any(one is None for one in told):
        return None
    return torch.stack([one for one in told if one is not None])
