"""Measures of fidelity and diversity from nearest neighbours, a block of the distance matrix at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1000


@dataclass(frozen=True)
class Coverage:
    """How far two sets of features cover each other; all but density lie within 0 and 1.

    Attributes:
        precision, recall: Kynkaanniemi et al. (arXiv:1904.06991); density, coverage: Naeem et al. (arXiv:2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_distances(points: Tensor, ks: tuple[int, ...], chunk: int = CHUNK) -> list[Tensor]:
    """For each k the distance of every point to its k-th nearest neighbour among the others: [n] each."""
    # The nearest of all is the point itself, at distance 0.
    nearest = torch.cat(
        [torch.cdist(rows, points).topk(max(ks) + 1, dim=1, largest=False).values for rows in points.split(chunk)]
    )
    return [nearest[:, k].contiguous() for k in ks]


def coverage_measures(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5, chunk: int = CHUNK) -> Coverage:
    """Precision, recall, density and coverage.

    Precision is the share of fakes within some real sample's distance to its k-th neighbour, recall the same with the
    roles exchanged. Density counts in how many real samples' balls a fake lies, over k_density; coverage is the share
    of real samples with a fake in their ball.

    Args:
        real, fake: features, [n, d] and [m, d], each of more than max(k, k_density) rows.
        k: neighbour of precision and recall; k_density: that of density and coverage.
        chunk: rows of the distance matrix held at once: 1,000 of 50,000 take 200 MB.
    """
    real, fake = real.float(), fake.float()
    real_radius, density_radius = neighbour_distances(real, (k, k_density), chunk)
    (fake_radius,) = neighbour_distances(fake, (k,), chunk)
    covered = torch.zeros(len(real), dtype=torch.bool)
    precise, recalled, inside = [], [], 0
    for rows, radius in zip(real.split(chunk), zip(real_radius.split(chunk), density_radius.split(chunk))):
        distances = torch.cdist(rows, fake)  # [chunk, m]
        precise.append((distances <= radius[0][:, None]).any(0))
        recalled.append((distances <= fake_radius).any(1))
        within = distances <= radius[1][:, None]
        inside += within.sum().item()
        start = sum(map(len, recalled[:-1]))
        covered[start : start + len(rows)] = within.any(1)
    return Coverage(
        precision=torch.stack(precise).any(0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=inside / (k_density * len(fake)),
        coverage=covered.double().mean().item(),
    )


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = CHUNK) -> tuple[float, float]:
    """Precision and recall alone; see `coverage_measures`."""
    measures = coverage_measures(real, fake, k, k, chunk)
    return measures.precision, measures.recall


def nearest(queries: Tensor, points: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Distance to, and index of, the nearest of `points` for each of `queries`: [n] each."""
    found = [torch.cdist(rows.float(), points.float()).min(1) for rows in queries.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
