"""Editing as a linear measurement: what an edit keeps of an image, where it begins, and mixtures of noises.

An edit knows a part of an image: some of its pixels, its luminance, or the means of its patches. That part is P y for
an orthogonal projector P, and an estimate x is made to agree with it by

    x - P x + P y

This is A^-1[(A y)(1 - Omega) + (A x) Omega] of CM (arXiv:2303.01469), Algorithm 4, in which A is orthogonal and Omega
marks the coefficients that are to be generated: P = A^-1 (1 - Omega) A. Only the known directions matter, so that A,
which the paper completes to a basis, is never needed. Images are [B, C, H, W] in [-1, 1].
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..arguments import integer, number
from .noise_schedule import RHO, SIGMA_MAX, SIGMA_MIN, karras_level, level_dtype

LUMINANCE = (0.2989, 0.5870, 0.1140)  # of red, green and blue: CM, Appendix D
TOLERANCE = 5e-7  # by which pixels may leave [-1, 1]
MAX_ROUNDS = 1000  # patches of black and white pictures need up to 200, colours up to 500


class Edit(ABC):
    """What is known of an image. A subclass defines `project`, which is all that a new edit needs."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """P x, the known part of images: linear in x, unchanged when it is done twice. [B, C, H, W] -> [B, C, H, W]."""

    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """x with its known part replaced by `known`, which is P y: x - P x + P y. CM, Algorithm 4."""
        return x - self.project(x) + known

    def complete_in_range(self, x: Tensor, known: Tensor) -> Tensor:
        """The same, with pixels in [-1, 1], as an image has them that is saved.

        Raising a patch to its mean may push a pixel beyond white, and clipping that pixel changes the mean. So both are
        done in turn, which converges: the images with the known part of y are an affine set that meets [-1, 1] in y
        (Cheney and Goldstein, 1959). Pixels, channels of a pixel and small patches agree to 1e-6 within the rounds.
        """
        for _ in range(MAX_ROUNDS):
            x = self.complete(x, known)
            if x.abs().max() <= 1 + TOLERANCE:
                break
            x = x.clamp(-1, 1)
        return x.clamp(-1, 1)


class Inpaint(Edit):
    """Pixels are known where the mask is 0, and generated where it is 1. P x = x (1 - mask).

    Args:
        mask: of 0 and 1, [H, W] or any shape that broadcasts against images; or [B, 1, H, W] or [B, C, H, W] for B
            images, which is repeated where several images are drawn for each.

    Raises:
        ValueError: other values in the mask.
    """

    def __init__(self, mask: Tensor) -> None:
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"a mask must hold 0 and 1, got values from {mask.min()} to {mask.max()}.")
        self.mask = mask

    def project(self, x: Tensor) -> Tensor:
        """x where the mask is 0, and 0 elsewhere.

        Raises:
            ValueError: the mask does not fit the images.
        """
        mask = self.mask.to(x)
        if mask.ndim == 4 and len(mask) > 1 and len(x) % len(mask) == 0:
            mask = mask.repeat_interleave(len(x) // len(mask), 0)
        try:
            fits = torch.broadcast_shapes(mask.shape, x.shape) == x.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"a mask of the shape {tuple(mask.shape)} does not fit images of {tuple(x.shape)}.")
        return x * (1 - mask)


class Colorize(Edit):
    """The luminance is known, the colour is generated. P x = u (u . x), u the direction of LUMINANCE in each pixel."""

    def project(self, x: Tensor) -> Tensor:
        """The grey part of images with three channels.

        Raises:
            ValueError: another number of channels.
        """
        if x.shape[1] != 3:
            raise ValueError(f"only images with 3 channels can be colourised, and this model's have {x.shape[1]}.")
        luminance = torch.tensor(LUMINANCE, dtype=torch.float64)
        u = (luminance / luminance.norm()).to(x)[:, None, None]
        return u * (u * x).sum(1, keepdim=True)


class SuperResolve(Edit):
    """The means of patches are known, the details are generated. P x = the mean of each patch, repeated.

    Args:
        factor: side of a patch in pixels.

    Raises:
        ValueError: a factor below 2.
    """

    def __init__(self, factor: int) -> None:
        whole = integer(factor)
        if whole is None or whole < 2:
            raise ValueError(f"the factor of super-resolution must be an integer of at least 2, got {factor!r}.")
        self.factor = whole

    def project(self, x: Tensor) -> Tensor:
        """Each pixel replaced by the mean of its patch.

        Raises:
            ValueError: height or width is no multiple of the factor.
        """
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"patches of {self.factor} pixels do not divide images of {width}x{height}.")
        means = avg_pool2d(x.to(level_dtype(x.device)), self.factor)  # sums of many pixels
        return interpolate(means, scale_factor=self.factor, mode="nearest").to(x.dtype)


def start_level(strength: float, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> float:
    """The noise level at which an edit of a given strength begins: SDEdit (arXiv:2108.01073), on the grid of EDM Eq. 5.

    0 is sigma_min, where f leaves an image as it is, and 1 is sigma_max, which leaves nothing of it. Strength s
    is index 39 (1 - s) of the 40 levels with which CM edits: 0.59 is 5.39, where it has 5.38 for strokes.

    Raises:
        ValueError: a strength outside [0, 1].
    """
    share = number(strength)
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"strength must lie within 0 and 1, got {strength}.")
    return karras_level(torch.tensor(share, dtype=torch.float64), sigma_min, sigma_max, rho).item()


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of two noises, whose mixtures are as long as noise is: CM, Appendix D.

    Args:
        first, second: noise of one image each, of the same shape [C, H, W].
        weights: [n], 0 for the first and 1 for the second.

    Returns:
        [n, C, H, W], the `latents` of n images.

    Raises:
        ValueError: noises of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"noises must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}.")
    a, b = (noise.flatten().to(level_dtype(noise.device)) for noise in (first, second))
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    share = weights.to(a).reshape(-1, 1)
    of_first, of_second = 1 - share, share  # the limit for noises of one direction
    if angle.sin() > 1e-6:
        of_first, of_second = (torch.sin(part * angle) / angle.sin() for part in (of_first, of_second))
    return (of_first * a + of_second * b).reshape(-1, *first.shape).to(first.dtype)
