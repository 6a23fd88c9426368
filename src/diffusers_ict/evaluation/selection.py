"""The metrics that users choose from: what each computes, from how many images, and which way is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .extractors import Extractor
from .features import Features
from .metrics import coverage_measures, frechet_distance, inception_score, kernel_distance

KID_SUBSET_SIZE = 1000  # as in the paper of KID
NEIGHBOURS = {"k_precision_recall": 3, "k_density_coverage": 5}

Figures = dict[str, float]  # by name, as in evaluation.json


@dataclass(frozen=True)
class Metric:
    """A metric of samples against a reference. A new metric is one new object of this class.

    Attributes:
        name: by which users ask for it.
        compute: (samples, reference, extractor, settings) -> figures by name, where samples and reference are
            `Features`. The standard deviation of a figure `x` is called `x_std`.
        minimum: number of features d -> images of each set that it needs at least.
        settings: (samples, reference images) -> settings of `compute`, recorded in the report.
        higher_is_better: of its figures.
        needs_logits: whether the extractor must give class probabilities.
        needs_features: whether `compute` reads features or logits of single images; False if moments are enough.
    """

    name: str
    compute: Callable[[Features, Features, Extractor, dict[str, Any]], Figures]
    minimum: Callable[[int], int]
    settings: Callable[[int, int], dict[str, Any]]
    higher_is_better: bool
    needs_logits: bool = False
    needs_features: bool = True

    def check(self, images: int, widths: Sequence[int], extractor: str) -> None:
        """Check that it can be computed from so many images, drawn or real.

        Args:
            widths: numbers of features, and of logits where there are any, of an image; extractor: its name.

        Raises:
            UserError: too few images, or no class probabilities.
        """
        if images < (minimum := self.minimum(widths[0])):
            why = f" with {widths[0]} features" if minimum > widths[0] else ""
            raise UserError(
                f"the metric {self.name} needs at least {minimum} images of each kind{why}, got {images}; give more "
                "images, or remove it from `metrics`."
            )
        if self.needs_logits and len(widths) == 1:
            raise UserError(f"the metric {self.name} needs class probabilities, which {extractor} does not give.")


def _frechet(samples, reference, extractor, settings) -> Figures:
    return {extractor.frechet: frechet_distance(reference.moments, samples.moments)}


def _kernel(samples, reference, extractor, settings) -> Figures:
    subsets = settings["subsets"], settings["subset_size"]
    return dict(zip(("kid", "kid_std"), kernel_distance(reference.features, samples.features, *subsets)))


def _kernel_settings(*counts: int) -> dict[str, Any]:
    """Half of a smaller set: subsets of all its images would be one and the same, and have no deviation."""
    size = KID_SUBSET_SIZE if min(counts) >= KID_SUBSET_SIZE else min(counts) // 2
    return {"subsets": 100, "subset_size": size, "kernel": "(x.y/d + 1)^3"}


def _inception(samples, reference, extractor, settings) -> Figures:
    return dict(zip(("inception_score", "inception_score_std"), inception_score(samples.logits, settings["splits"])))


def _coverage(samples, reference, extractor, settings) -> Figures:
    return coverage_measures(reference.features, samples.features, *settings.values())


FID = Metric("fid", _frechet, lambda dim: dim + 1, lambda *counts: {}, higher_is_better=False, needs_features=False)
KID = Metric("kid", _kernel, lambda dim: 4, _kernel_settings, higher_is_better=False)
IS = Metric("is", _inception, lambda dim: 10, lambda *counts: {"splits": 10}, True, needs_logits=True)
PR = Metric("pr", _coverage, lambda dim: 6, lambda *counts: dict(NEIGHBOURS), higher_is_better=True)
METRICS = {metric.name: metric for metric in (FID, KID, IS, PR)}
