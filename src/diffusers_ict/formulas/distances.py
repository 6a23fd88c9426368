"""Distances between two batches of images, each [B, ...] x [B, ...] -> [B]: one number per sample."""

import math

import torch
from torch import Tensor


def pseudo_huber_constant(dimensions: int) -> float:
    """c = 0.00054 sqrt(d) for images of d = C * H * W entries. iCT (arXiv:2310.14189) Sec. 3.3."""
    return 0.00054 * math.sqrt(dimensions)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(||a - b||^2 + c^2) - c with the norm over all entries of a sample. iCT Eq. 9. [B, ...] -> [B].

    Not the element-wise Huber loss: the root is taken once per image. Without `c`, pseudo_huber_constant(d). With c = 0
    it is the norm itself, whose gradient is 0 where a = b.
    """
    difference = (a - b).flatten(1)
    if c is None:
        c = pseudo_huber_constant(difference.shape[1])
    if c == 0:
        return torch.linalg.vector_norm(difference, dim=1)
    return (difference.square().sum(1) + c**2).sqrt() - c


def cauchy(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """log(1 + ||a - b||^2 / (2 c^2)) with the norm over all entries of a sample. [B, ...] -> [B].

    Improved Training Technique for Latent Consistency Models (arXiv:2502.01441): its gradient falls as 2 / ||a - b||
    where the difference is large, so that outliers, which latents have, weigh less than in `pseudo_huber`. Without `c`,
    pseudo_huber_constant(d).
    """
    difference = (a - b).flatten(1)
    if c is None:
        c = pseudo_huber_constant(difference.shape[1])
    return torch.log1p(difference.square().sum(1) / (2 * c**2))


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over the entries of a sample, as in CT's code. [B, ...] -> [B]."""
    return (a - b).flatten(1).square().mean(1)
