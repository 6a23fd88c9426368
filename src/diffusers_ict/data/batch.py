"""The global batch of one optimizer step, handed out in micro batches to processes and accumulation steps."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..formulas.augmentation import NUM_UNIFORM
from ..objectives.base import Objective
from .draw import Draw
from .stream import TrainingImages
from .transform import to_unit


@dataclass(frozen=True)
class Batch:
    """A micro batch on the device.

    Attributes:
        x: images in [-1, 1], [B, C, H, W]; labels: [B] or None; noise: z, [B, C, H, W].
        sigma, sigma_next: noise levels of each sample's pair, float64 [B] (float32 on MPS).
        uniform: uniform numbers for augmentation, [B, NUM_UNIFORM], or None.
        dropout_seed: of this micro batch.
    """

    x: Tensor
    labels: Tensor | None
    noise: Tensor
    sigma: Tensor
    sigma_next: Tensor
    uniform: Tensor | None
    dropout_seed: int


class GlobalBatch:
    """The images, noise and noise levels of one optimizer step, the same whatever the processes.

    Iterating gives the micro batches of one process, in order; their number is `len()`.

    Args:
        draw: the step's randomness.
        images: the data set.
        objective: decides the noise levels at this step.
        total_steps: optimizer steps of the run.
        micro_batch_size: samples of a micro batch.
        rank, ranks: which of how many processes iterates.
        random_flip: mirror half of the images.
        augmented: draw uniform numbers for augmentation too.
    """

    def __init__(
        self,
        draw: Draw,
        images: TrainingImages,
        objective: Objective,
        total_steps: int,
        micro_batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        random_flip: bool = False,
        augmented: bool = False,
    ) -> None:
        self.draw, self.images, self.size = draw, images, draw.batch_size
        self.micro_batch_size, self.rank, self.ranks = micro_batch_size, rank, ranks
        self.images_of = images.sampler(draw)
        self.flips = draw.flips() if random_flip else None
        self.sigma, self.sigma_next = objective.sample_pair(draw.pair_uniform(), draw.step, total_steps)
        self.uniform = draw.augmentation_uniform(NUM_UNIFORM) if augmented else None

    def __len__(self) -> int:
        return self.size // (self.micro_batch_size * self.ranks)

    def __iter__(self) -> Iterator[Batch]:
        """Every `ranks`-th micro batch, from number `rank` on."""
        for number in range(self.rank, len(self) * self.ranks, self.ranks):
            yield self.micro_batch(number)

    def micro_batch(self, number: int) -> Batch:
        """The samples of one micro batch of the global batch."""
        size = self.micro_batch_size
        rows = slice(number * size, (number + 1) * size)
        flips = None if self.flips is None else self.flips[rows]
        pixels, labels = self.images_of(rows)
        return Batch(
            to_unit(pixels, flips, self.draw.device),
            None if labels is None else labels.to(self.draw.device),
            self.draw.noise(self.images.shape, range(rows.start, rows.stop)),
            self.sigma[rows],
            self.sigma_next[rows],
            None if self.uniform is None else self.uniform[rows],
            self.draw.dropout_seed(number),
        )
