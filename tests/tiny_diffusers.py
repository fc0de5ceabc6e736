"""Tiny folders of diffusers', random weights, written as its own `save_pretrained` does."""

from __future__ import annotations

import string
from pathlib import Path

SIDE = 16


def stable_diffusion(folder: Path, scheduler: str = "PNDMScheduler", *, checked: bool = False) -> Path:
    """Write a StableDiffusionPipeline for pictures of 16 x 16; `checked` with a checker that finds fault with
    everything.
    """
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    vocabulary: dict[str, int] = {}
    for character in string.ascii_lowercase + string.digits + string.punctuation:
        vocabulary |= {character: len(vocabulary), f"{character}</w>": len(vocabulary) + 1}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
        )
    )
    denoiser = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    autoencoder = diffusers.AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    more: dict[str, bool] = {} if scheduler.startswith("Euler") else {"clip_sample": False}
    if scheduler == "PNDMScheduler":
        more = {"skip_prk_steps": True}
    chosen = getattr(diffusers, scheduler)(beta_schedule="scaled_linear", steps_offset=1, **more)
    checker, reader = _checker() if checked else (None, None)
    diffusers.StableDiffusionPipeline(
        autoencoder, encoder, tokenizer, denoiser, chosen, checker, reader, requires_safety_checker=checked
    ).save_pretrained(folder)
    return folder


def unprompted(folder: Path, kind: str = "DDPM") -> Path:
    """Write a DDPMPipeline or a DDIMPipeline for pictures of 16 x 16."""
    import diffusers
    import torch

    torch.manual_seed(1)
    denoiser = diffusers.UNet2DModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    getattr(diffusers, f"{kind}Pipeline")(denoiser, scheduler).save_pretrained(folder)
    return folder


def _checker() -> tuple[object, object]:
    import torch
    import transformers
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**vision, "image_size": 16, "patch_size": 8}, text_config={}, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)  # every likeness is over that
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return checker, transformers.CLIPImageProcessor(**size)
