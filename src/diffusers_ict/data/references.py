"""The reference images of a step, among which targets are averaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .draw import REFERENCES, Draw
from .sampler import StepSampler, batches_of, step_loader
from .transform import Transform, pictures


@dataclass
class References:
    """Random images of the data set, others in each step, and the same ones on every process.

    Attributes:
        images: gives those of the next step at each `next`: {"x": [n, C, H, W], "label": [n]}, or without labels.
        size: n; random_flip: mirror half of them; transform: of the data.
    """

    images: Iterator[dict[str, Any]]
    size: int
    random_flip: bool = False
    transform: Transform = pictures

    def step(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], float32 [n, C, H, W], and their labels [n] or None, of the step that `draw` belongs to."""
        batch = next(self.images)
        own = Draw(draw.seed, draw.step, self.size, draw.device, REFERENCES)
        labels = batch.get("label")
        x = self.transform(batch["x"], own.flips() if self.random_flip else None, own, range(self.size))
        return x, None if labels is None else torch.as_tensor(labels).to(draw.device)


def open_references(
    dataset: Any, seed: int, size: int, steps: range, accelerator: Accelerator, random_flip: bool
) -> References:
    """The references of the steps to come, from a map-style data set of at least `size` images."""
    sampler = StepSampler(seed, REFERENCES, len(dataset), size, size, steps)
    images = batches_of(step_loader(dataset, sampler, accelerator, sharded=False))
    return References(images, size, random_flip, dataset.transform)
