"""The evaluator: a reference, an extractor and a place for unfinished work, to measure samples with."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..data.dataset import Images
from .chunks import collect, key_of
from .extractors import Extractor
from .metric import Figures, Metric, check_features, compute_metrics
from .reference import Reference
from .samples import Model, describe_images, describe_model, drawer, labels_of
from .work import WorkFolders


@dataclass
class Evaluator:
    """Measures samples against a reference.

    Attributes:
        work: folders of unfinished chunks; chunk: images of one.
        label_source: data whose classes samples are drawn as frequently as, or None for each class in turn.
    """

    reference: Reference
    extractor: Extractor
    accelerator: Accelerator
    work: WorkFolders
    chunk: int
    label_source: Images | None = None

    def of_model(self, model: Model, levels: list[float], count: int, seed: int, metrics: Sequence[Metric]) -> Figures:
        """Figures of `count` images drawn through these noise levels."""
        labels = labels_of(model, self.label_source, seed)
        source = None if self.label_source is None else self.label_source.labels
        classes = "uniform" if source is None else hashlib.sha256(source.numpy().data).hexdigest()
        description = {**describe_model(model, seed, classes), "levels": levels}
        label = f"{model.variant or 'published'}, {len(levels)} step{'s' if len(levels) > 1 else ''}"
        return self._figures(description, count, drawer(model, labels, seed, levels), metrics, label)

    def of_images(self, images: Images, metrics: Sequence[Metric]) -> Figures:
        """Figures of given images."""

        def given(start: int, size: int) -> Tensor:
            return images.pixels[start : start + size]

        return self._figures(describe_images(images), len(images), given, metrics, "images")

    def _figures(
        self,
        description: dict[str, Any],
        count: int,
        images: Callable[[int, int], Tensor],
        metrics: Sequence[Metric],
        label: str,
    ) -> Figures:
        # One black image shows the extractor's output before thousands of images are drawn.
        features, logits = self.extractor.features(
            torch.zeros(1, *self.reference.description["shape"], dtype=torch.uint8)
        )
        check_features(metrics, count, self.reference, self.extractor, features.shape[1], logits is not None)
        description |= {
            "count": count,
            "chunk": self.chunk,
            "extractor": self.extractor.weights,
            "as": self.extractor.resize,
        }
        folder = self.work.claim(key_of({**description, "extractor_name": self.extractor.name}))
        samples = collect(folder, count, self.chunk, images, self.extractor, self.accelerator, label)
        found: list[Figures] = [{}]
        if self.accelerator.is_main_process:  # the result is broadcast, so that all processes take the same path
            found = [compute_metrics(metrics, samples, self.reference, self.extractor)]
        return broadcast_object_list(found)[0]
