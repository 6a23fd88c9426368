"""Pairs of which the difference is learned: restoration, in which the condition is near the image.

    r = (x - condition) / scale        x = condition + scale r

r is what a consistency model of such pairs learns and draws. The scale gives it the deviation sigma_data, so that the
noise levels, the preconditioning and the curriculum fit it as they fit images. A condition of one channel is
subtracted from each channel.

Networks learn the difference for the same reason in image restoration (Zhang et al., DnCNN, arXiv:1608.03981, Eq. 1)
and in diffusion models of it (Li et al., SRDiff, arXiv:2104.14951).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .preconditioning import SIGMA_DATA


def to_residual(x: Tensor, condition: Tensor, scale: float) -> Tensor:
    """r of images [B, C, H, W] and their conditions [B, C, H, W] or [B, 1, H, W], in the units of both."""
    return (x - condition) / scale


def from_residual(r: Tensor, condition: Tensor, scale: float) -> Tensor:
    """The images of r, the inverse of `to_residual`."""
    return condition + scale * r


def residual_scale(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The scale that gives r the root mean square sigma_data; 0 where each image is its condition.

    Args:
        pairs: parts of images and of their conditions, as in `to_residual`.

    In float32, because the last bits of the mean differ between processors, and a run may go on on another one.
    """
    total, count = 0.0, 0
    for x, condition in pairs:
        squares = (x - condition).double().square()
        total, count = total + squares.sum().item(), count + squares.numel()
    return torch.tensor((total / count) ** 0.5 / SIGMA_DATA).item()
