"""Autoencoders of diffusers whose latents a model draws: what they make of images, and images of latents."""

import hashlib
import json
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from .errors import UserError
from .hashes import weights_hash
from .transparency import MODES

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
# Entries of a config that neither the encoder nor the decoder computes with.
IDLE = ("scaling_factor", "shift_factor", "sample_size", "force_upcast", "latents_mean", "latents_std")


def downsampling(vae: Autoencoder) -> int:
    """How many times smaller the sides of latents are than those of images."""
    config = vae.config
    widths = config.block_out_channels if isinstance(vae, AutoencoderKL) else config.encoder_block_out_channels
    return 2 ** (len(widths) - 1)


def latent_shape(vae: Autoencoder, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, H, W) of the latents of images of a shape (C, H, W).

    Raises:
        UserError: the autoencoder is made for another number of channels, or does not divide the sides.
    """
    channels, height, width = shape
    if vae.config.in_channels != channels:
        mode = MODES.get(vae.config.in_channels)
        remedy = f"convert them with `image_mode` {mode}" if mode else "take another autoencoder"
        raise UserError(
            f"the autoencoder takes images of {vae.config.in_channels} channels, and these have {channels}: {remedy}."
        )
    factor = downsampling(vae)
    if height % factor or width % factor:
        raise UserError(
            f"the autoencoder divides sides by {factor}, so the resolution must be a multiple of it, got "
            f"{width}x{height}: give another `resolution`."
        )
    return vae.config.latent_channels, height // factor, width // factor


def fingerprint(vae: Autoencoder) -> str:
    """SHA-256 of the weights, and of what the config says of the computation, in 32 hexadecimal digits."""
    config = {key: value for key, value in vae.config.items() if not key.startswith("_") and key not in IDLE}
    facts = [type(vae).__name__, config, weights_hash(vae)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@torch.no_grad()
def encode(vae: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of the latents of images in [-1, 1], unscaled: [B, C, H, W] -> float32 each.

    The deviation is None for an AutoencoderTiny, which has one latent for an image.
    """
    if isinstance(vae, AutoencoderTiny):
        return vae.encode(x.to(vae.dtype), return_dict=False)[0].float(), None
    posterior = vae.encode(x.to(vae.dtype), return_dict=False)[0]
    return posterior.mean.float(), posterior.std.float()


@torch.no_grad()
def decode(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Images of scaled latents, as diffusers' LDMPipeline decodes them: float32, in [-1, 1] but for overshoots."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0].float()
