"""Small pipelines of diffusers with random weights, written by diffusers and transformers themselves."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PLAIN = {
    "course": {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "cifar10": {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
}
"""Two topologies of UNet2DModel: that of the course, and that of DDPM for CIFAR-10, narrower."""
CONDITIONAL: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 8, "use_linear_projection": False},
    "sd2": {"attention_head_dim": (2, 4, 4), "use_linear_projection": True},
}
"""What the U-Nets of Stable Diffusion 1 and 2 differ in."""
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""The betas of Stable Diffusion."""
WIDTH = 32
"""Entries of a token."""


def shaken(module: nn.Module, seed: int = 0) -> Any:
    """Draw every weight, so that none is a trivial 0 or 1, and nothing grows much."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            if parameter.ndim < 2:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval()


def plain(name: str, **more: Any) -> UNet2DModel:
    """Return a small UNet2DModel."""
    return shaken(UNet2DModel(layers_per_block=2, **PLAIN[name], **more))


def conditional(name: str, **more: Any) -> UNet2DConditionModel:
    """Return a small UNet2DConditionModel."""
    return shaken(
        UNet2DConditionModel(
            sample_size=8,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            **{**CONDITIONAL[name], **more},
        )
    )


def autoencoder(**more: Any) -> AutoencoderKL:
    """Return a small AutoencoderKL."""
    return shaken(
        AutoencoderKL(
            block_out_channels=(32, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            sample_size=32,
            **more,
        ),
        1,
    )


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a tokenizer that knows single bytes, and one word."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(code) for code in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    words = [*signs, *(f"{sign}</w>" for sign in signs), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """Return a small CLIP text model."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return shaken(CLIPTextModel(config), 2)


def stable_diffusion(folder: Path, name: str = "sd1", **scheduler: Any) -> StableDiffusionPipeline:
    """Write a small Stable Diffusion pipeline into a folder, and return it."""
    words = tokenizer(folder.with_name(f"{folder.name}-vocabulary"))
    made = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(words),
        tokenizer=words,
        unet=conditional(name),
        scheduler=DDIMScheduler(
            **BETAS, **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **scheduler}
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder)
    return made


def pixels(folder: Path, name: str = "cifar10", scheduler: Any = None) -> Any:
    """Write a small pipeline of pixels into a folder, and return it."""
    chosen = scheduler or DDIMScheduler()
    made = (DDIMPipeline if isinstance(chosen, DDIMScheduler) else DDPMPipeline)(plain(name), chosen)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder)
    return made
