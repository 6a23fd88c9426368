"""The batches of a run: images of the loader, and what is drawn for each of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..formulas.augmentation import NUM_UNIFORM
from ..formulas.posterior_mean import posterior_mean
from ..formulas.preconditioning import Condition, Told
from ..formulas.residual import to_residual
from .draw import Draw
from .references import References
from .stream import StreamedImages
from .transform import Transform, pictures, to_unit


@dataclass(frozen=True)
class Batch:
    """A micro batch on the device.

    Attributes:
        x: images in [-1, 1] or residuals, [B, C, H, W]; labels: [B] or None; noise: z, [B, C, H, W].
        sigma, sigma_next: noise levels of each sample's pair, float64 [B] (float32 on MPS).
        uniform: uniform numbers for augmentation, [B, NUM_UNIFORM], or None.
        dropout_seed: of this micro batch.
        mean: posterior means of the noisier points, [B, C, H, W], or None.
        condition: what the network is given of pairs, in [-1, 1], [B, C', H, W], or None.
    """

    x: Tensor
    labels: Tensor | None
    noise: Tensor
    sigma: Tensor
    sigma_next: Tensor
    uniform: Tensor | None
    dropout_seed: int
    mean: Tensor | None = None
    condition: Tensor | None = None

    @property
    def told(self) -> Told:
        """What a consistency function gets beside noisy images and levels: the labels, with the condition of pairs."""
        return self.labels if self.condition is None else Condition(self.labels, self.condition)

    def with_mean_of(self, references: Tensor, labels: Tensor | None, unlabelled: int | None = None) -> "Batch":
        """This batch with the posterior means among itself and references [n, C, H, W] with labels [n] or None.

        Args:
            unlabelled: the label of images that are learned without one.
        """
        mean = posterior_mean(self.x, self.noise, self.sigma_next, references, self.labels, labels, unlabelled)
        return replace(self, mean=mean)


@dataclass
class Batches:
    """The micro batches of one player on one process, step after step.

    Noise, levels and flips are those of the global batch, whatever the processes: micro batch i belongs to process
    i mod n, as the loader has it.

    Attributes:
        images: gives the next micro batch at each `next`: {"x": [B, C, H, W], "label": [B]}, or without labels; of
            pairs with a "condition" [B, C', H, W].
        batch_size: images of a step on all processes together; micro_batch_size: of a micro batch.
        rank, ranks: which of how many processes this is.
        random_flip: mirror half of the images.
        augmented: draw uniform numbers for augmentation, too.
        references: images among which the targets of a step are averaged, or None.
        transform: of the data, what comes from the loader -> x.
        residual_scale: of pairs, learn (x - condition) / residual_scale instead of x; None for x.
        label_dropout: probability that an image is learned without its label, with `unlabelled` in its place.
    """

    images: Iterator[dict[str, Any]]
    batch_size: int
    micro_batch_size: int
    rank: int = 0
    ranks: int = 1
    random_flip: bool = False
    augmented: bool = False
    references: References | None = None
    transform: Transform = pictures
    residual_scale: float | None = None
    label_dropout: float = 0.0
    unlabelled: int | None = None

    @property
    def parts(self) -> int:
        """Micro batches of a step on this process."""
        return self.batch_size // (self.micro_batch_size * self.ranks)

    def step(self, draw: Draw, sigma: Tensor, sigma_next: Tensor) -> Iterator[Batch]:
        """The micro batches of the next step, one after another.

        Args:
            draw: the randomness of that step.
            sigma, sigma_next: levels of the pairs of the global batch, [batch_size] each.
        """
        flips = draw.flips() if self.random_flip else None
        uniform = draw.augmentation_uniform(NUM_UNIFORM) if self.augmented else None
        dropped = draw.without_label(self.label_dropout) if self.label_dropout else None
        references = None if self.references is None else self.references.step(draw)
        for number in range(self.rank, self.parts * self.ranks, self.ranks):
            batch = self._micro_batch(number, draw, sigma, sigma_next, flips, uniform, dropped)
            yield batch if references is None else batch.with_mean_of(*references, self.unlabelled)

    def _micro_batch(
        self,
        number: int,
        draw: Draw,
        sigma: Tensor,
        sigma_next: Tensor,
        flips: Tensor | None,
        uniform: Tensor | None,
        dropped: Tensor | None,
    ) -> Batch:
        images = next(self.images)
        rows = slice(number * self.micro_batch_size, (number + 1) * self.micro_batch_size)
        flipped = None if flips is None else flips[rows]
        places = range(rows.start, rows.stop)
        x = self.transform(images["x"], flipped, draw, places)
        labels, condition = images.get("label"), images.get("condition")
        condition = None if condition is None else to_unit(condition, flipped, draw.device)
        if self.residual_scale is not None and condition is not None:
            x = to_residual(x, condition, self.residual_scale)
        if labels is not None:
            labels = labels.to(draw.device)
            labels = labels if dropped is None else labels.masked_fill(dropped[rows], self.unlabelled)
        return Batch(
            x,
            labels,
            draw.noise(tuple(x.shape[1:]), places),
            sigma[rows],
            sigma_next[rows],
            None if uniform is None else uniform[rows],
            draw.dropout_seed(number),
            condition=condition,
        )


def streamed(images: StreamedImages, size: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """The next images of a stream, so many at a time, for a device; none is read before it is asked for."""
    while True:
        pixels, labels = images.take(size)
        if device.type == "cuda":  # copied while the device computes
            pixels = pixels.pin_memory()
        yield {"x": pixels} if labels is None else {"x": pixels, "label": labels}
