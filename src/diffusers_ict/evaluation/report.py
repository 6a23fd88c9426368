"""Figures of one set of samples, and the report that a model card and a plot are made from."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from .extractors import Extractor
from .metrics import Moments, frechet_distance, inception_score, kernel_distance
from .neighbours import coverage_measures
from .reference import Reference

METRICS = ("fid", "kid", "is", "pr")
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS = 10
K_PRECISION_RECALL, K_DENSITY_COVERAGE = 3, 5
HIGHER_IS_BETTER = ("inception_score", "precision", "recall", "density", "coverage")


def check_metrics(metrics: list[str], images: int) -> None:
    """Are these metrics known, and is a set of so many images, drawn or real, large enough for them?

    Raises:
        UserError: no.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"--metrics may be {', '.join(METRICS)}, got {metric}.")
    least = {"kid": 4, "is": IS_SPLITS, "pr": 1 + max(K_PRECISION_RECALL, K_DENSITY_COVERAGE)}
    for metric in set(metrics) & least.keys():
        if images < least[metric]:
            raise UserError(f"--metrics {metric} needs at least {least[metric]} images of each kind, got {images}.")


def settings_of(metrics: list[str], samples: int, reference: int) -> dict[str, dict[str, Any]]:
    """What metrics of so many samples and reference images are computed with.

    KID's subsets hold 1,000 images, as in its paper, or half of the smaller set where that has fewer: subsets of all
    images would be one and the same, and have no deviation.
    """
    fewest = min(samples, reference)
    size = KID_SUBSET_SIZE if fewest >= KID_SUBSET_SIZE else fewest // 2
    known = {
        "kid": {"subsets": KID_SUBSETS, "subset_size": size, "kernel": "(x.y/d + 1)^3"},
        "is": {"splits": IS_SPLITS},
        "pr": {"k_precision_recall": K_PRECISION_RECALL, "k_density_coverage": K_DENSITY_COVERAGE},
    }
    return {metric: known[metric] for metric in metrics if metric in known}


def check_figures(
    metrics: list[str], samples: int, reference: Reference, extractor: Extractor, dim: int, has_logits: bool
) -> None:
    """Can these metrics be computed of so many samples with `dim` features each?

    Raises:
        UserError: other features than the reference's, too few images for a covariance, or no class probabilities.
    """
    if dim != reference.features.shape[1]:
        raise UserError(
            f"samples have {dim} features and the reference has {reference.features.shape[1]}; use images of the same "
            "size and channels and the same extractor."
        )
    check_metrics(metrics, min(samples, len(reference.features)))
    if "fid" in metrics and min(samples, len(reference.features)) <= dim:
        raise UserError(
            f"a Frechet distance needs more images than features: {samples} samples, {len(reference.features)} "
            f"reference images, {dim} features; raise --num_samples, or leave fid out of --metrics."
        )
    if "is" in metrics and not has_logits:
        raise UserError(f"--metrics is needs class probabilities, which {extractor.name} does not give.")


def figures(
    metrics: list[str], samples: dict[str, Tensor], reference: Reference, extractor: Extractor
) -> dict[str, float]:
    """The metrics of samples against a reference, by name.

    Args:
        metrics: among METRICS, checked by `check_figures`.
        samples: "features" [n, d] and perhaps "logits" [n, classes].

    Raises:
        UserError: features that are not numbers.
    """
    features = samples["features"]
    if not features.isfinite().all():
        raise UserError(f"{extractor.name} gives features that are not numbers for these images.")
    out: dict[str, float] = {}
    if "fid" in metrics:
        out[extractor.frechet] = frechet_distance(reference.moments, Moments.of(features))
    if "kid" in metrics:
        given = settings_of(["kid"], len(features), len(reference.features))["kid"]
        out["kid"], out["kid_std"] = kernel_distance(
            reference.features, features, given["subsets"], given["subset_size"]
        )
    if "is" in metrics:
        score = inception_score(samples["logits"], IS_SPLITS)
        out["inception_score"], out["inception_score_std"] = score
    if "pr" in metrics:
        out |= vars(coverage_measures(reference.features, features, K_PRECISION_RECALL, K_DENSITY_COVERAGE))
    return out


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """evaluation.json, whole or not at all, and evaluation.png beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".evaluation.json.tmp"
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(folder / "evaluation.json")
    if any(row["num_inference_steps"] for row in report["rows"]):
        plot_quality(report, folder / "evaluation.png")


def plot_quality(report: dict[str, Any], target: Path) -> None:
    """Each metric against the number of steps, one line for each average of the weights, as PNG."""
    from matplotlib.figure import Figure  # no global state and no display

    rows = report["rows"]
    names = [name for name in rows[0]["metrics"] if not name.endswith("_std")]
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, name in zip(panels, names):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["variant"] == variant]
            steps = [row["num_inference_steps"] for row in mine]
            deviations = [row["metrics"].get(f"{name}_std", 0.0) for row in mine]
            values = [row["metrics"][name] for row in mine]
            panel.errorbar(steps, values, deviations, marker="o", capsize=3, label=variant or "published")
        better = "higher" if name in HIGHER_IS_BETTER else "lower"
        panel.set(
            xlabel="steps",
            title=f"{name} ({better} is better)",
            xticks=sorted({r["num_inference_steps"] for r in rows}),
        )
        panel.set_ylim(*(f(0, edge) for f, edge in zip((min, max), panel.get_ylim())))  # differences in proportion
    for panel in list(panels)[len(names) :]:
        panel.remove()
    if len({row["variant"] for row in rows}) > 1:
        figure.axes[0].legend()
    figure.suptitle(f"{report['samples']:,} samples, {report['extractor']}", fontsize=9)
    figure.savefig(target, dpi=120)
