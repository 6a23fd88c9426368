"""Which images each step sees, for a `DataLoader`: a function of seed, player and step, and of nothing else."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ..errors import UserError
from .draw import PERMUTATION, derive_seed


@lru_cache(maxsize=6)  # three players, each of whose steps may straddle two epochs
def permutation(seed: int, role: int, epoch: int, length: int) -> np.ndarray:
    """The order of the images in one epoch of a player: int64 [length]."""
    return np.random.default_rng(derive_seed(seed, PERMUTATION, role, epoch)).permutation(length)


def step_indices(seed: int, role: int, step: int, batch_size: int, length: int) -> np.ndarray:
    """The images of one step: consecutive slices of one permutation per epoch, int64 [batch_size]."""
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // length, (end - 1) // length + 1)
    return np.concatenate(
        [
            permutation(seed, role, epoch, length)[max(first - epoch * length, 0) : end - epoch * length]
            for epoch in epochs
        ]
    )


class StepSampler(Sampler[list[int]]):
    """The micro batches of all processes, step after step, from any step on; for `DataLoader(batch_sampler=...)`.

    Args:
        seed: of the run; role: of the player, GENERATOR, FAKES or REALS.
        length: images of the data set.
        batch_size: images of a step on all processes together.
        micro_batch_size: images of a micro batch, which divides `batch_size`.
        steps: those to come, such as range(first, last).
    """

    drop_last = True  # as accelerate asks: all micro batches are full

    def __init__(self, seed: int, role: int, length: int, batch_size: int, micro_batch_size: int, steps: range) -> None:
        self.seed, self.role, self.length = seed, role, length
        self.step_size, self.batch_size, self.steps = batch_size, micro_batch_size, steps

    def __len__(self) -> int:
        return len(self.steps) * (self.step_size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            indices = step_indices(self.seed, self.role, step, self.step_size, self.length)
            yield from indices.reshape(-1, self.batch_size).tolist()


def collate(batch: Any) -> dict[str, torch.Tensor]:
    """A batch as it is, where the data set's `__getitems__` makes one at once; else PyTorch's of its items."""
    return batch if isinstance(batch, dict) else default_collate(batch)


def step_loader(
    dataset: Dataset, sampler: StepSampler, accelerator: Accelerator, num_workers: int = 0, sharded: bool = True
) -> DataLoader:
    """A loader of this process's micro batches, on its device: accelerate hands them out in turn, and fetches ahead.

    Args:
        dataset: any map-style one of {"x": [C, H, W], "label": int}, or without labels.
        num_workers: processes that call it ahead of time; none for a data set that lies on a GPU.
        sharded: else every process gets all of them, where the data set lies.
    """
    on_host = getattr(dataset, "device", torch.device("cpu")).type == "cpu"
    num_workers = num_workers if on_host else 0
    seed = derive_seed(sampler.seed, PERMUTATION, sampler.role, sampler.steps.start, accelerator.process_index)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=on_host and accelerator.device.type == "cuda",
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed % 2**63),  # the global one stays as it is
    )
    return accelerator.prepare(loader) if sharded else loader


def batches_of(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """The batches of a loader, whose processes wrap an error and its traceback into another one of the same type.

    Raises:
        UserError: the sentence alone, as without such processes.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error
