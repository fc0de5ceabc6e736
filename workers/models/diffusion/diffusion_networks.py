"""The networks of a diffusers folder, and its pipeline's work before, during and after the steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from producers.wire.errors import ConfigurationError
from workers.models.backends.choice import DTYPES
from workers.models.diffusion.folder import Folder


class DiffusionNetworks(ABC):
    """A diffusers pipeline. Rows of the same shape share a pass of its denoiser, each with its own timestep."""

    def __init__(self, pipeline: Any, device: str) -> None:
        self.pipeline = pipeline
        self.device = device
        self._unet = pipeline.unet

    def scheduler(self, steps: int) -> Any:
        """Return a new scheduler for a picture; it keeps that picture's state."""
        found = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        found.set_timesteps(steps, device=self.device)
        return found

    def noise(self, seed: int, height: int, width: int) -> tuple[torch.Tensor, torch.Generator]:
        """Return a picture's initial noise, `(1, channels, …)`, and its generator.

        The noise is drawn on the CPU, like diffusers with a CPU generator, so a seed gives the same noise on every
        device.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self._unet.config.in_channels, *self.latent_size(height, width))
        drawn = torch.randn(shape, generator=generator, dtype=self._unet.dtype)
        return drawn.to(self.device), generator

    @abstractmethod
    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the latents for a picture of this size."""

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> torch.Tensor | None:
        """Return the prompts' embeddings `(prompts, tokens, width)`, or None if the denoiser has no prompts."""

    @abstractmethod
    def denoise(self, rows: torch.Tensor, times: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
        """Return the denoiser's output for rows at their timesteps."""

    @abstractmethod
    def draw(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], list[bool]]:
        """Return pictures `(rows, height, width, channels)`, and whether the folder's safety checker blackened each."""


class Prompted(DiffusionNetworks):
    """StableDiffusionPipeline: denoises an autoencoder's latents, guided by a text encoder."""

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.pipeline.vae_scale_factor
        return height // scale, width // scale

    def read(self, prompts: Sequence[str]) -> torch.Tensor | None:
        told, _ = self.pipeline.encode_prompt(
            list(prompts), self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return torch.as_tensor(told)

    def denoise(self, rows: torch.Tensor, times: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
        return torch.as_tensor(self._unet(rows, times, encoder_hidden_states=told, return_dict=False)[0])

    def draw(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], list[bool]]:
        vae = self.pipeline.vae
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        checked, flagged = self.pipeline.run_safety_checker(decoded, self.device, decoded.dtype)
        pictures = _pixels(torch.as_tensor(checked))
        flags = [bool(flag) for flag in flagged] if flagged is not None else [False] * len(pictures)
        for picture, flag in zip(pictures, flags, strict=True):
            if flag:
                picture[:] = 0
        return pictures, flags


class Unprompted(DiffusionNetworks):
    """DDPMPipeline and DDIMPipeline: the pixels themselves are denoised."""

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def read(self, prompts: Sequence[str]) -> torch.Tensor | None:
        return None

    def denoise(self, rows: torch.Tensor, times: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
        return torch.as_tensor(self._unet(rows, times, return_dict=False)[0])

    def draw(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], list[bool]]:
        return _pixels(latents), [False] * len(latents)


def load(folder: Folder, device: str, precision: str) -> DiffusionNetworks:
    """Load a folder onto a device. Raises ConfigurationError if diffusers is missing or cannot load the folder."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigurationError(f"{folder.where}: {error}; pip install 'argosy[diffusion]'") from error
    pipeline_class = getattr(diffusers, folder.pipeline)
    try:
        pipeline = pipeline_class.from_pretrained(
            folder.path, dtype=getattr(torch, DTYPES[precision]), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{folder.where}: {folder.pipeline} cannot be loaded: {error}") from error
    if pipeline.unet.config.get("time_cond_proj_dim") is not None:
        raise ConfigurationError(
            f"{folder.where}: a network with guidance as an input (time_cond_proj_dim) is not supported"
        )
    pipeline.to(device)
    for network in pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            network.eval()
    return Prompted(pipeline, device) if folder.reads_prompts else Unprompted(pipeline, device)


def _pixels(values: torch.Tensor) -> NDArray[np.uint8]:
    """Turn values of -1 to 1, `(rows, channels, height, width)`, into bytes with channels last; rounds like diffusers.

    Raises FloatingPointError for NaN; diffusers would return a black picture.
    """
    if values.isnan().any():
        raise FloatingPointError(
            "a picture's values are not numbers; fp16 is too narrow for some networks: use bf16 or fp32"
        )
    shares = (values / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return np.asarray((shares * 255).round().astype(np.uint8))
