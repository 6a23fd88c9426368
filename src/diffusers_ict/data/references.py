"""The reference images of a step, among which targets are averaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from .draw import REFERENCES, Draw
from .sampler import StepSampler, batches_of, step_loader
from .transform import to_unit


@dataclass
class References:
    """Random images of the data set, others in each step, and the same ones on every process.

    Attributes:
        images: gives those of the next step at each `next`: {"x": [n, C, H, W], "label": [n]}, or without labels.
        size: n; random_flip: mirror half of them.
    """

    images: Iterator[dict[str, Any]]
    size: int
    random_flip: bool = False

    def step(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], float32 [n, C, H, W], and their labels [n] or None, of the step that `draw` belongs to."""
        batch = next(self.images)
        own = Draw(draw.seed, draw.step, self.size, draw.device, REFERENCES)
        labels = batch.get("label")
        x = to_unit(batch["x"], own.flips() if self.random_flip else None, draw.device)
        return x, None if labels is None else torch.as_tensor(labels).to(draw.device)


def open_references(
    dataset: Dataset, seed: int, size: int, steps: range, accelerator: Accelerator, random_flip: bool
) -> References:
    """The references of the steps to come, from a map-style data set of at least `size` images."""
    sampler = StepSampler(seed, REFERENCES, len(dataset), size, size, steps)  # type: ignore[arg-type]
    return References(batches_of(step_loader(dataset, sampler, accelerator, sharded=False)), size, random_flip)
