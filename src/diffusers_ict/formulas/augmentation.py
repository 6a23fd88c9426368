"""Differentiable augmentation of strength p, after StyleGAN2-ADA (Karras et al., arXiv:2006.06676, Appendix B).

Each transformation is applied to each image with probability p, decided and parametrised by uniform numbers that come
in, so that a call is a pure function. Mirroring, quarter turns and whole-pixel shifts are exact; all
other motions are composed into one affine map and resampled once, bilinearly; colours are one matrix. At p = 0 images
pass through untouched, not resampled.

kornia has most of these, but draws its own random numbers from the global generator, resamples once for each of them,
and would add a dependency heavier than this file.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

NUM_UNIFORM = 28  # uniform numbers for each image


class _Numbers:
    """Hands out columns of uniform numbers [B, NUM_UNIFORM], in a fixed order."""

    def __init__(self, uniform: Tensor) -> None:
        self.columns = iter(uniform.unbind(1))

    def uniform(self) -> Tensor:
        return next(self.columns)

    def normal(self) -> Tensor:
        # Away from 0 and 1, where the inverse of the normal distribution is infinite.
        return torch.special.ndtri(self.uniform().clamp(1e-6, 1 - 1e-6))

    def angle(self) -> Tensor:
        return (self.uniform() * 2 - 1) * math.pi

    def happens(self, p: float | Tensor) -> Tensor:
        return self.uniform() < p


def augment(images: Tensor, p: float | Tensor, uniform: Tensor) -> Tensor:
    """Augment a batch with strength p.

    Args:
        images: [B, C, H, W]; hue, saturation and luma flip need C = 3.
        p: probability of each transformation, 0 to 1; as a tensor of one number, it is never read by the host.
        uniform: independent uniform numbers, [B, NUM_UNIFORM].

    Returns:
        [B, C, H, W], differentiable in `images`; `images` itself where p is the number 0. Values may leave [-1, 1].
    """
    if not isinstance(p, Tensor) and p <= 0:
        return images
    numbers = _Numbers(uniform)
    moved = _move_whole_pixels(images, p, numbers)
    return _recolour(_warp(moved, p, numbers), p, numbers)


def _move_whole_pixels(x: Tensor, p: float | Tensor, numbers: _Numbers) -> Tensor:
    """Mirror, quarter turns, and shifts by whole pixels with reflection at the border."""
    mirrored = numbers.happens(p) & (numbers.uniform() < 0.5)
    turned, quarter = numbers.happens(p), (numbers.uniform() * 4).long()
    shifted = numbers.happens(p)
    height, width = x.shape[-2:]
    # StyleGAN2-ADA shifts by up to an eighth of the image.
    down = ((numbers.uniform() * 2 - 1) * 0.125 * height).round().long() * shifted
    right = ((numbers.uniform() * 2 - 1) * 0.125 * width).round().long() * shifted

    x = _select(mirrored, x.flip(-1), x)
    if height == width:
        quarter = quarter * turned
        for turns in (1, 2, 3):
            x = _select(quarter == turns, x.rot90(turns, (-2, -1)), x)
    rows = _reflect(torch.arange(height, device=x.device) - down[:, None], height)
    columns = _reflect(torch.arange(width, device=x.device) - right[:, None], width)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _select(where: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(where[:, None, None, None], a, b)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond the border reflected about the outermost pixels."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.abs() % (2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)


def _warp(x: Tensor, p: float | Tensor, numbers: _Numbers) -> Tensor:
    """Scaling, rotation, anisotropic scaling, rotation, fractional shift: one affine map, one resampling."""
    # Two rotations, of which at least one happens with probability p.
    p_rotation = 1 - (1 - p) ** 0.5
    scale = torch.where(numbers.happens(p), torch.exp2(0.2 * numbers.normal()), 1.0)
    first = torch.where(numbers.happens(p_rotation), numbers.angle(), 0.0)
    stretch = torch.where(numbers.happens(p), torch.exp2(0.2 * numbers.normal()), 1.0)
    last = torch.where(numbers.happens(p_rotation), numbers.angle(), 0.0)
    shifted = numbers.happens(p)
    # Coordinates run from -1 to 1: a shift of 0.125 of the image is 0.25.
    across = torch.where(shifted, 0.25 * numbers.normal(), 0.0)
    down = torch.where(shifted, 0.25 * numbers.normal(), 0.0)

    stretched = torch.diag_embed(torch.stack([scale * stretch, scale / stretch], 1))
    linear = _rotation(last) @ stretched @ _rotation(first)
    theta = torch.cat([linear, torch.stack([across, down], 1)[:, :, None]], 2)
    warped = grid_sample(
        x.float(), affine_grid(theta.float(), list(x.shape), align_corners=False),
        mode="bilinear", padding_mode="reflection", align_corners=False,
    ).to(x.dtype)  # fmt: skip
    return _select((scale != 1) | (first != 0) | (stretch != 1) | (last != 0) | shifted, warped, x)


def _rotation(angle: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _recolour(x: Tensor, p: float | Tensor, numbers: _Numbers) -> Tensor:
    """Brightness, contrast, and for RGB luma flip, hue and saturation: x -> M x + b at every pixel."""
    count, channels = x.shape[:2]
    brightness = torch.where(numbers.happens(p), 0.2 * numbers.normal(), 0.0)
    contrast = torch.where(numbers.happens(p), torch.exp2(0.5 * numbers.normal()), 1.0)
    flips = numbers.happens(p) & (numbers.uniform() < 0.5)
    hue = torch.where(numbers.happens(p), numbers.angle(), 0.0)
    saturation = torch.where(numbers.happens(p), torch.exp2(numbers.normal()), 1.0)

    matrix = contrast[:, None, None] * torch.eye(channels, device=x.device).expand(count, -1, -1)
    offset = contrast * brightness
    if channels == 3:
        matrix = _colour_matrix(flips, hue, saturation) @ matrix
        # The luma axis is an eigenvector of it, so a grey offset stays grey; a flip reverses it.
        offset = torch.where(flips, -offset, offset)
    changed = torch.einsum("bij,bjhw->bihw", matrix.to(x.dtype), x) + offset.to(x.dtype)[:, None, None, None]
    untouched = (brightness == 0) & (contrast == 1) & ~flips & (hue == 0) & (saturation == 1)
    return _select(untouched, x, changed)


def _colour_matrix(flips: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """A luma flip, a rotation of the hue and a saturation, in this order: [B], [B], [B] -> [B, 3, 3]."""
    flips, hue, saturation = (values[:, None, None] for values in (flips.float(), hue, saturation))
    identity = torch.eye(3, device=hue.device)
    grey = torch.full_like(identity, 1 / 3)  # v v^T, the projection onto the grey axis v = (1, 1, 1) / sqrt(3)
    # [[0, -1, 1], [1, 0, -1], [-1, 1, 0]] / sqrt(3), made on the device: a captured step copies nothing from the host.
    cross = (identity.roll(1, 0) - identity.roll(-1, 0)) / math.sqrt(3)
    flip = identity - 2 * flips * grey  # a reflection
    turn = hue.cos() * identity + (1 - hue.cos()) * grey + hue.sin() * cross  # about the grey axis: Rodrigues
    saturate = grey + saturation * (identity - grey)  # distance from the grey axis
    return saturate @ turn @ flip
