"""The batch of one optimizer step: drawn whole, handed out in parts to processes and accumulation steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..augmentation import NUM_UNIFORM
from .draw import Draw
from .images import Images


@dataclass(frozen=True)
class Batch:
    """A part of the global batch, on the device.

    Attributes:
        x: images in [-1, 1], [B, C, H, W]; labels: [B] or None; noise: z, [B, C, H, W].
        sigma, sigma_next: noise levels of each sample's pair, float64 [B].
        index_next: place of sigma_next in the grid, counted from 0, [B].
        uniform: uniform numbers for augmentation, [B, NUM_UNIFORM], or None.
        dropout_seed: of this part.
    """

    x: Tensor
    labels: Tensor | None
    noise: Tensor
    sigma: Tensor
    sigma_next: Tensor
    index_next: Tensor
    uniform: Tensor | None
    dropout_seed: int


class GlobalBatch:
    """What one player needs for one step.

    Args:
        draw: the step's randomness.
        images: the data set.
        sigmas, probabilities: grid [N] and probability of each of its pairs [N - 1].
        random_flip: mirror half of the images.
        augmented: draw uniform numbers for augmentation too.
    """

    def __init__(
        self,
        draw: Draw,
        images: Images,
        sigmas: Tensor,
        probabilities: Tensor,
        random_flip: bool,
        augmented: bool,
    ) -> None:
        self.draw, self.images = draw, images
        self.indices = draw.indices(len(images))
        self.flips = draw.flips() if random_flip else None
        pairs = draw.pairs(probabilities)
        levels = torch.stack([sigmas[pairs], sigmas[pairs + 1]])
        if draw.device.type == "mps":  # which has no float64
            levels = levels.float()
        self.sigma, self.sigma_next = levels.to(draw.device)
        self.index_next = (pairs + 1).to(draw.device)
        self.noise = draw.noise(images.shape)
        self.uniform = draw.uniform(NUM_UNIFORM) if augmented else None

    def part(self, number: int, size: int) -> Batch:
        """The samples from `number * size` on, `size` of them."""
        rows = slice(number * size, (number + 1) * size)
        flips = None if self.flips is None else self.flips[rows]
        x, labels = self.images.batch(self.indices[rows], flips, self.draw.device)
        return Batch(
            x,
            labels,
            self.noise[rows],
            self.sigma[rows],
            self.sigma_next[rows],
            self.index_next[rows],
            None if self.uniform is None else self.uniform[rows],
            self.draw.dropout_seed(number),
        )
