"""Train the built-in picture model: ``python -m workers.shipped_heads.vision.picture_training [--out FOLDER] [--steps
N]``.

A latent diffusion model (Rombach et al., 2022) in diffusers' form, small enough for one core: an autoencoder of 4 x 8 x
8 numbers per picture, then a denoiser that reads prompts through its own text encoder, both trained on handwritten
digits. `workers.shipped_heads.vision.picture_scores` judges it. The folder is written every few hundred steps, so that
a run can be cut short.
"""

from __future__ import annotations

import argparse
import string
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from workers.models.sources import model_source
from workers.shipped_heads.vision import digits
from workers.shipped_heads.vision.digits import SIDE, Digits
from workers.training.data import SEED

BATCH = 64
_AUTOENCODER_BATCH = 32
_LATENT_CHANNELS = 4
_WIDTH = 64  # of the text encoder
_MAX_TOKENS = 16
_KEEP = 0.999  # of the running mean of the weights, a step
#: This share of the prompts is empty in training; guidance compares with the empty prompt.
_UNPROMPTED = 0.15
#: Each digit is also moved by up to this many pixels.
_MOVES = ((0, 0), (-2, 1), (2, -1), (1, 2), (-1, -2))
_SAVE_EVERY = 500


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with a token for every word of the prompts, and letters for other words."""
    known: dict[str, int] = {}
    for character in string.ascii_lowercase + string.digits + string.punctuation:
        known.setdefault(character, len(known))
        known.setdefault(f"{character}</w>", len(known))
    merges: list[tuple[str, str]] = []
    for word in digits.words():
        tail = f"{word[-1]}</w>"
        for character in reversed(word[:-1]):
            if (character, tail) not in merges:
                merges.append((character, tail))
            tail = character + tail
            known.setdefault(tail, len(known))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        known[special] = len(known)
    return CLIPTokenizer(vocab=known, merges=merges, model_max_length=_MAX_TOKENS)


def networks(words: CLIPTokenizer) -> tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel]:
    """Return the three networks, untrained: 0.24, 0.1 and 1.0 million parameters."""
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=_LATENT_CHANNELS,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        sample_size=SIDE,
    )
    reader = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=_MAX_TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    denoiser = UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return autoencoder, reader, denoiser


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def moved(images: NDArray[np.float32], move: tuple[int, int]) -> torch.Tensor:
    """Return slightly moved images for the autoencoder: `(images, 1, 32, 32)` of -1 to 1."""
    return torch.from_numpy(np.roll(images, move, axis=(1, 2)))[:, None] * 2 - 1


def train_autoencoder(network: AutoencoderKL, images: NDArray[np.float32], steps: int, console: Console) -> None:
    """Train it to reproduce a picture from its latents, which should be distributed like noise."""
    random = np.random.default_rng(SEED)
    optimizer, schedule = _optimizer(network.parameters(), steps, rate=2e-3)
    for step in range(steps):
        batch = moved(images[random.integers(0, len(images), _AUTOENCODER_BATCH)], _MOVES[step % len(_MOVES)])
        latents = network.encode(batch).latent_dist
        drawn = network.decode(latents.sample()).sample
        loss = functional.mse_loss(drawn, batch) + 0.2 * functional.l1_loss(drawn, batch) + 1e-4 * latents.kl().mean()
        _step(optimizer, schedule, loss)
        if step % 50 == 0:
            console.print(f"autoencoder {step}: {loss.item():.4f}")
    with torch.no_grad():
        spread = network.encode(moved(images[:500], (0, 0))).latent_dist.sample().std()
    network.register_to_config(scaling_factor=round(1 / spread.item(), 4))


class Latents:
    """The digits as input of the denoiser: each moved in five ways, encoded once."""

    def __init__(self, autoencoder: AutoencoderKL, examples: Digits) -> None:
        self._examples = examples
        self._latents: list[torch.Tensor] = []
        with torch.no_grad():
            for move in _MOVES:
                parts = torch.split(moved(examples.images, move), 200)
                self._latents.append(torch.cat([autoencoder.encode(part).latent_dist.mean for part in parts]))
        self._factor = float(autoencoder.config.scaling_factor)

    def draw(self, random: Random) -> tuple[torch.Tensor, list[str]]:
        """Return a batch of latents and their prompts."""
        places = [random.randrange(len(self._examples)) for _ in range(BATCH)]
        chosen = torch.stack([random.choice(self._latents)[place] for place in places])
        return chosen * self._factor, [self._prompt(place, random) for place in places]

    def _prompt(self, place: int, random: Random) -> str:
        if random.random() < _UNPROMPTED:
            return ""
        return digits.prompt(int(self._examples.numbers[place]), self._examples.adjectives[place], random)


class Diffusion:
    """The training of the denoiser with the text encoder. `mean` holds the saved weights: their running mean."""

    def __init__(self, pipeline: StableDiffusionPipeline, steps: int) -> None:
        self._pipeline = pipeline
        self._trained = torch.nn.ModuleList([pipeline.unet, pipeline.text_encoder])
        self.mean = {name: value.detach().clone() for name, value in self._trained.state_dict().items()}
        self._optimizer, self._schedule = _optimizer(self._trained.parameters(), steps, rate=1.5e-3)

    def step(self, latents: torch.Tensor, prompts: Sequence[str], number: int) -> float:
        noises = self._pipeline.scheduler
        times = torch.randint(0, noises.config.num_train_timesteps, (len(latents),))
        noise = torch.randn_like(latents)
        noisy = noises.add_noise(latents, noise, times)
        found = self._pipeline.unet(noisy, times, self._read(prompts)).sample
        loss = functional.mse_loss(found, noises.get_velocity(latents, noise, times))
        _step(self._optimizer, self._schedule, loss)
        keep = min(_KEEP, (1 + number) / (10 + number))
        for name, value in self._trained.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - keep)
        return loss.item()

    def _read(self, prompts: Sequence[str]) -> torch.Tensor:
        words = self._pipeline.tokenizer
        tokens = words(
            list(prompts), padding="max_length", max_length=_MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        hidden: torch.Tensor = self._pipeline.text_encoder(tokens.input_ids).last_hidden_state
        return hidden

    def save(self, out: Path) -> None:
        """Write the pipeline with the mean weights, in half precision."""
        current = {name: value.detach().clone() for name, value in self._trained.state_dict().items()}
        self._trained.load_state_dict(self.mean)
        self._pipeline.to(torch.float16).save_pretrained(out)
        self._pipeline.to(torch.float32)
        self._trained.load_state_dict(current)


def _optimizer(weights: Any, steps: int, *, rate: float) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)


def _step(optimizer: torch.optim.Optimizer, schedule: Any, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    schedule.step()


def train(examples: Digits, out: Path, *, autoencoder_steps: int, steps: int, console: Console) -> None:
    """Train all networks on `examples` and write the folder `out`."""
    torch.manual_seed(SEED)
    words = tokenizer()
    autoencoder, reader, denoiser = networks(words)
    train_autoencoder(autoencoder, examples.images, autoencoder_steps, console)
    latents = Latents(autoencoder, examples)
    pipeline = StableDiffusionPipeline(
        autoencoder, reader, words, denoiser, scheduler(), None, None, requires_safety_checker=False
    )
    diffusion, random, started, losses = Diffusion(pipeline, steps), Random(SEED), time.monotonic(), []  # noqa: S311
    for step in range(steps):
        losses.append(diffusion.step(*latents.draw(random), step))
        if step % 50 == 49:
            console.print(f"{step + 1}: {np.mean(losses[-50:]):.4f}, {time.monotonic() - started:.0f} s")
        if step % _SAVE_EVERY == _SAVE_EVERY - 1 or step == steps - 1:
            diffusion.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=model_source.BUNDLED / "pictures", help="folder (default: %(default)s)"
    )
    parser.add_argument("--autoencoder-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=5000)
    asked = parser.parse_args()
    examples, _ = digits.read(model_source.cache_folder())
    train(examples, asked.out, autoencoder_steps=asked.autoencoder_steps, steps=asked.steps, console=Console())


if __name__ == "__main__":
    main()
