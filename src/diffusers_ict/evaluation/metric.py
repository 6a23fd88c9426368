"""The metrics of an evaluation, one row each: what is computed, from how many images, and which way is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UserError
from .extractors import Extractor
from .metrics import Moments, frechet_distance, inception_score, kernel_distance
from .neighbours import coverage_measures
from .reference import Reference

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS = 10
K_PRECISION_RECALL, K_DENSITY_COVERAGE = 3, 5

Figures = dict[str, dict[str, float]]  # by metric, and by the figure's own name


@dataclass(frozen=True)
class Metric:
    """A metric of samples against a reference. A new metric is one new object of this kind.

    Attributes:
        name: by which users ask for it.
        compute: (samples, reference, extractor, settings) -> figures by name, where samples hold "features" [n, d] and
            perhaps "logits" [n, classes]. The standard deviation of a figure `x` is called `x_std`.
        minimum: number of features d -> images of each kind that it needs at least.
        settings: (samples, reference images) -> settings of `compute`, recorded in the report.
        higher_is_better: of its figures.
        needs_logits: whether the extractor must give class probabilities.
    """

    name: str
    compute: Callable[[dict[str, Tensor], Reference, Extractor, dict[str, Any]], dict[str, float]]
    minimum: Callable[[int], int]
    settings: Callable[[int, int], dict[str, Any]]
    higher_is_better: bool
    needs_logits: bool = False


def _frechet(samples, reference, extractor, settings) -> dict[str, float]:
    return {extractor.frechet: frechet_distance(reference.moments, Moments.of(samples["features"]))}


def _kernel(samples, reference, extractor, settings) -> dict[str, float]:
    drawn = settings["subsets"], settings["subset_size"]
    mean, deviation = kernel_distance(reference.features, samples["features"], *drawn)
    return {"kid": mean, "kid_std": deviation}


def _kernel_settings(samples: int, reference: int) -> dict[str, Any]:
    """Subsets of 1,000 images, as in KID's paper, or half of the smaller set where that has fewer.

    Subsets of all images would be one and the same, and have no deviation.
    """
    fewest = min(samples, reference)
    size = KID_SUBSET_SIZE if fewest >= KID_SUBSET_SIZE else fewest // 2
    return {"subsets": KID_SUBSETS, "subset_size": size, "kernel": "(x.y/d + 1)^3"}


def _inception(samples, reference, extractor, settings) -> dict[str, float]:
    mean, deviation = inception_score(samples["logits"], settings["splits"])
    return {"inception_score": mean, "inception_score_std": deviation}


def _coverage(samples, reference, extractor, settings) -> dict[str, float]:
    ks = settings["k_precision_recall"], settings["k_density_coverage"]
    return dict(vars(coverage_measures(reference.features, samples["features"], *ks)))


FID = Metric("fid", _frechet, lambda dim: dim + 1, lambda samples, reference: {}, higher_is_better=False)
KID = Metric("kid", _kernel, lambda dim: 4, _kernel_settings, higher_is_better=False)
IS = Metric(
    "is",
    _inception,
    lambda dim: IS_SPLITS,
    lambda samples, reference: {"splits": IS_SPLITS},
    higher_is_better=True,
    needs_logits=True,
)
PR = Metric(
    "pr",
    _coverage,
    lambda dim: 1 + max(K_PRECISION_RECALL, K_DENSITY_COVERAGE),
    lambda samples, reference: {"k_precision_recall": K_PRECISION_RECALL, "k_density_coverage": K_DENSITY_COVERAGE},
    higher_is_better=True,
)
METRICS = {metric.name: metric for metric in (FID, KID, IS, PR)}


def named_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names.

    Raises:
        UserError: an unknown name.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"`metrics` may be {', '.join(METRICS)}, got {unknown[0]}.")
    return [METRICS[name] for name in names]


def check_images(metrics: Sequence[Metric], images: int, dim: int = 0) -> None:
    """Check that a set of so many images, drawn or real, is large enough for the metrics.

    Args:
        dim: number of features, where it is known already.

    Raises:
        UserError: it is too small.
    """
    for metric in metrics:
        if images < (minimum := metric.minimum(dim)):
            why = f" with {dim} features" if minimum > dim > 0 else ""
            raise UserError(
                f"the metric {metric.name} needs at least {minimum} images of each kind{why}, got {images}; give more "
                "images, or remove it from `metrics`."
            )


def settings_of(metrics: Sequence[Metric], samples: int, reference: int) -> dict[str, dict[str, Any]]:
    """The settings that metrics of so many samples and reference images are computed with, by name."""
    found = {metric.name: metric.settings(samples, reference) for metric in metrics}
    return {name: settings for name, settings in found.items() if settings}


def check_features(
    metrics: Sequence[Metric], images: int, reference: Reference, extractor: Extractor, dim: int, has_logits: bool
) -> None:
    """Check that these metrics can be computed from so many samples with `dim` features each.

    Raises:
        UserError: other features than the reference's, too few images, or no class probabilities.
    """
    if dim != reference.features.shape[1]:
        raise UserError(
            f"samples have {dim} features and the reference has {reference.features.shape[1]}; use images of the same "
            "size and channels and the same extractor."
        )
    check_images(metrics, min(images, len(reference.features)), dim)
    if (needy := next((m.name for m in metrics if m.needs_logits), None)) and not has_logits:
        raise UserError(f"the metric {needy} needs class probabilities, which {extractor.name} does not give.")


def compute_metrics(
    metrics: Sequence[Metric], samples: dict[str, Tensor], reference: Reference, extractor: Extractor
) -> Figures:
    """The figures of samples against a reference.

    Args:
        metrics: checked by `check_features`.
        samples: "features" [n, d] and perhaps "logits" [n, classes].

    """
    counts = len(samples["features"]), len(reference.features)
    return {m.name: m.compute(samples, reference, extractor, m.settings(*counts)) for m in metrics}
