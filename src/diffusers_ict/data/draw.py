"""Randomness as a function, not a state.

Everything random in optimizer step k is derived from (seed, k) and from a sample's place in the global batch. So
nothing random has to be saved, a resumed run repeats the uninterrupted one bit for bit, and one process with 32
samples, two with 16 and one with 8 in 4 accumulation steps see the same images, noise levels and noise.
"""

import numpy as np
import torch
from torch import Tensor

from ..formulas.noise_schedule import level_dtype

# One stream for each kind of randomness, so that a new kind does not change the others. Never renumber.
PERMUTATION, FLIP, PAIR, NOISE, DROPOUT, INIT, VALIDATION, AUGMENTATION, EVALUATION, SHARD, BLOCK_ORDER = range(11)
POSTERIOR, LABEL = 11, 12
# The players of a step, whose draws are independent: the generator, D's fakes and its real images, and the references.
GENERATOR, FAKES, REALS, REFERENCES = range(4)
BLOCK = 16  # samples whose noise is drawn together


def derive_seed(*keys: int) -> int:
    """A 64-bit seed that is a well-mixed function of small non-negative integers."""
    return derive_seeds(1, *keys)[0]


def derive_seeds(count: int, *keys: int) -> list[int]:
    """So many seeds; the first is that of `derive_seed`, and none depends on their number."""
    return np.random.SeedSequence(keys).generate_state(count, np.uint64).tolist()


class Draw:
    """The random draws of one optimizer step, for the global batch: every micro batch takes its slice.

    Args:
        seed: of the run; step: optimizer step from 0.
        batch_size: samples of the global batch.
        device: where noise is generated; it is the same for every run on the same kind of device.
        role: GENERATOR, FAKES or REALS: draws of one step that must be independent.
    """

    def __init__(
        self, seed: int, step: int, batch_size: int, device: torch.device | str, role: int = GENERATOR
    ) -> None:
        self.seed, self.step, self.batch_size, self.role = seed, step, batch_size, role
        self.device = torch.device(device)
        self._last: dict[int, tuple[int, Tensor]] = {}  # number and noise of the last block, by stream

    def _generator(self, stream: int) -> torch.Generator:
        seed = derive_seed(self.seed, stream, self.step, self.role)
        return torch.Generator(self.device).manual_seed(seed)

    def flips(self) -> Tensor:
        """Which of them are mirrored, with probability 1/2: bool [B] on `device`."""
        return torch.rand(self.batch_size, generator=self._generator(FLIP), device=self.device) < 0.5

    def without_label(self, probability: float) -> Tensor:
        """Which of them are learned without their labels: bool [B] on `device`."""
        return torch.rand(self.batch_size, generator=self._generator(LABEL), device=self.device) < probability

    def pair_uniform(self) -> Tensor:
        """Uniform numbers in [0, 1) that decide the noise levels (`Objective.sample_pair`): [B] on `device`.

        float64, or float32 on MPS.
        """
        kind = level_dtype(self.device)
        return torch.rand(self.batch_size, dtype=kind, generator=self._generator(PAIR), device=self.device)

    def noise(self, shape: tuple[int, ...], rows: range | None = None) -> Tensor:
        """z ~ N(0, I): float32 [B, *shape] on `device`; or that of the samples in `rows` alone, a range of step 1.

        It is drawn in blocks, each with a seed of its own, so that no process draws the noise of the others.
        """
        return self._normal(NOISE, shape, range(self.batch_size) if rows is None else rows)

    def posterior_noise(self, shape: tuple[int, ...], rows: range) -> Tensor:
        """What makes a latent of the mean and the deviation of an autoencoder: standard normal, drawn as `noise`."""
        return self._normal(POSTERIOR, shape, rows)

    def _normal(self, stream: int, shape: tuple[int, ...], rows: range) -> Tensor:
        first, end = rows.start // BLOCK, -(-rows.stop // BLOCK)
        seeds = derive_seeds(end, self.seed, stream, self.step, self.role)
        blocks = torch.empty((end - first) * BLOCK, *shape, device=self.device)
        generator, last = torch.Generator(self.device), self._last.get(stream)
        for number, block in enumerate(blocks.split(BLOCK), first):
            if last is not None and number == last[0]:  # which micro batches that do not end with a block share
                block.copy_(last[1])
            else:
                block.normal_(generator=generator.manual_seed(seeds[number]))
            last = self._last[stream] = number, block
        return blocks[rows.start - first * BLOCK :][: len(rows)]

    def augmentation_uniform(self, count: int) -> Tensor:
        """`count` uniform numbers in [0, 1) for each sample, on `device`: float32 [B, count]."""
        generator = self._generator(AUGMENTATION)
        return torch.rand((self.batch_size, count), generator=generator, device=self.device)

    def dropout_seed(self, micro_batch: int) -> int:
        """Seed of the dropout masks of one micro batch (a rank's accumulation step)."""
        return derive_seed(self.seed, DROPOUT, self.step, self.role, micro_batch)
