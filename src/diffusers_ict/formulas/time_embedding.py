"""The insensitive time embedding of iCT, in a form that stock diffusers loads.

iCT (arXiv:2310.14189, Sec. 3.1) lowers the scale of the Fourier features of ln(sigma) from 16 to 0.02: consistency
training compares neighbouring noise levels, and features that differ between neighbours destabilise it.
UNet2DModel's positional embedding of 250 ln(sigma) is as sensitive as the setting iCT rejects. Its features are
cos and sin of 250 f_j ln(sigma) with frequencies f_j from 1 to 1e-4, so it holds both fast and slow ones:
zero the columns of `time_embedding.linear_1.weight` that read the fast ones, keep them at zero, and what is left
is an insensitive embedding inside a plain UNet2DModel checkpoint.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from .preconditioning import C_NOISE_SCALE

# A feature is slow when its phase moves by at most a quarter per unit of ln(sigma).
FASTEST_PHASE = 0.25


class TimeEmbedded(Protocol):
    """A diffusers model with a time embedding, such as UNet2DModel or ConsistencyDiscriminator."""

    config: Any
    time_embedding: Any


def fast_columns(unet: TimeEmbedded) -> Tensor:
    """Which inputs of `time_embedding.linear_1` belong to fast frequencies: bool [width of the first block].

    The frequencies are those of diffusers' `get_timestep_embedding`, f_j = 10000 ^ (-j / (half - freq_shift)),
    read off the model's own config. sin and cos halves carry the same frequencies, so their order does not matter.

    Raises:
        ValueError: the model's time embedding is not positional.
    """
    if (embedding := unet.config.time_embedding_type) != "positional":
        raise ValueError(
            f"a consistency model needs time_embedding_type 'positional' (the others cannot be sampled by stock "
            f"diffusers), got {embedding!r}; change it in the model's config."
        )
    width = unet.config.block_out_channels[0]
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64) / (half - unet.config.freq_shift)
    frequencies = torch.exp(-math.log(10000.0) * exponent)
    fast = C_NOISE_SCALE * frequencies > FASTEST_PHASE
    padding = torch.zeros(width - 2 * half, dtype=torch.bool)
    return torch.cat([fast, fast, padding])


def uses_fast_columns(unet: TimeEmbedded) -> bool:
    """True when the weights read a fast frequency, as those of models trained elsewhere do."""
    weight = unet.time_embedding.linear_1.weight
    return bool(weight.detach()[:, fast_columns(unet).to(weight.device)].any())


def zero_fast_columns(unet: TimeEmbedded) -> None:
    """Zero the fast columns of freshly initialised weights and scale the others up to the same total variance."""
    weight = unet.time_embedding.linear_1.weight
    fast = fast_columns(unet).to(weight.device)
    with torch.no_grad():
        weight[:, ~fast] *= (fast.numel() / (~fast).sum()).sqrt().to(weight.dtype)
        weight[:, fast] = 0


def hold_fast_columns(unet: TimeEmbedded) -> None:
    """Mask the gradient of the fast columns from now on, so that any optimizer leaves zeros at zero."""
    slow = ~fast_columns(unet)

    def mask(gradient: Tensor | None) -> Tensor | None:
        nonlocal slow
        if gradient is None:  # compiled passes call the hooks of frozen networks, too
            return None
        slow = slow.to(gradient.device)  # once: a copy in every step would be waited for, and cannot be captured
        return gradient * slow

    unet.time_embedding.linear_1.weight.register_hook(mask)
