"""Distances and scores of generated images, on features [n, d] of any network.

Defaults and the way subsets are drawn are those of torch-fidelity, so that figures can be compared to the last digit.
All is computed on the device of the features, in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SUBSET_SEED = 2020
CHUNK = 1000  # rows of a distance matrix held at once: of 50,000 columns they take 400 MB
ROUNDING = 1e-14  # of squared distances, relative to the largest squared norm


@dataclass
class Moments:
    """Mean and covariance of features that come in pieces, in float64.

    Pieces are joined by Chan et al. (1979): no large sums are subtracted from each other.

    Attributes:
        count: rows seen; mean: [d]; scatter: sum of (x - mean)(x - mean)^T, [d, d].
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Moments of all rows of features [n, d], on their device."""
        empty = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
        moments = cls(0, empty, torch.outer(empty, empty))
        for rows in features.split(CHUNK) if len(features) else ():
            moments.update(rows)
        return moments

    def update(self, features: Tensor) -> None:
        """Take in more rows, [n, d]."""
        rows = features.to(self.mean.device).double()
        mean = rows.mean(0)
        centred = rows - mean
        total, shift = self.count + len(rows), mean - self.mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def to(self, device: torch.device | str) -> "Moments":
        """The same on another device."""
        return Moments(self.count, self.mean.to(device), self.scatter.to(device))

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [d, d]."""
        return self.scatter / (self.count - 1)


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al. (arXiv:1706.08500), in float64.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric:
    no complex square root of a matrix is needed.

    Args:
        a, b: features, [n, d] and [m, d], or their moments.
    """
    a, b = (x if isinstance(x, Moments) else Moments.of(x) for x in (a, b))
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return (means + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int = 1000) -> tuple[float, float]:
    """KID, Binkowski et al. (arXiv:1801.01401): mean and deviation over subsets of the unbiased squared MMD.

    Kernel (x.y / d + 1)^3, in float64.

    Args:
        real, fake: features, [n, d] and [m, d].
        subsets, subset_size: how many, and rows of each set in one.

    Raises:
        ValueError: a set has fewer rows than a subset.
    """
    rng = np.random.RandomState(SUBSET_SEED)
    values = []
    for _ in range(subsets):
        f, r = (x[torch.from_numpy(rng.choice(len(x), subset_size, replace=False))].double() for x in (fake, real))
        ff, rr, fr = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((f, f), (r, r), (f, r)))
        within = ff.sum() - ff.trace() + rr.sum() - rr.trace()
        values.append((within / (subset_size * (subset_size - 1)) - 2 * fr.sum() / subset_size**2).item())
    return float(np.mean(values)), float(np.std(values))


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)), Salimans et al. (arXiv:1606.03498): mean and deviation over splits, in float64.

    Args:
        logits: of a classifier, [n, classes]; rows are shuffled before they are split.
    """
    order = np.random.RandomState(SUBSET_SEED).permutation(len(logits))
    log_p = logits[torch.from_numpy(order)].double().log_softmax(1)
    scores = []
    for number in range(splits):
        rows = log_p[number * len(log_p) // splits : (number + 1) * len(log_p) // splits]
        marginal = rows.exp().mean(0, keepdim=True).log()
        scores.append((rows.exp() * (rows - marginal)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def coverage_measures(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """ "precision" and "recall" (arXiv:1904.06991), "density" and "coverage" (arXiv:2002.09797), in float64.

    Precision is the share of fakes within some real sample's distance to its k-th neighbour, recall the same with the
    roles exchanged. Density counts in how many real samples' balls a fake lies, over k_density; coverage is the share
    of real samples with a fake in their ball. All but density lie within 0 and 1. A sample on the surface of a ball is
    in it, so that copies are found.

    Args:
        real, fake: features, [n, d] and [m, d], each of more than max(k, k_density) rows.
        k: neighbour of precision and recall; k_density: that of density and coverage.
    """
    real, fake = centred(real, fake)
    slack = ROUNDING * max(x.square().sum(1).max() for x in (real, fake))
    radii = [(radius.square() + slack).sqrt() for radius in neighbour_distances(real, (k, k_density))]
    fake_radius = (neighbour_distances(fake, (k,))[0].square() + slack).sqrt()
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled, covered, inside = [], [], 0
    for rows, radius, density_radius in zip(*(x.split(CHUNK) for x in (real, *radii))):
        distances = torch.cdist(rows, fake)  # [CHUNK, m]
        precise |= (distances <= radius[:, None]).any(0)
        recalled.append((distances <= fake_radius).any(1))
        within = distances <= density_radius[:, None]
        inside += within.sum().item()
        covered.append(within.any(1))
    precision, recall, coverage = (x.double().mean().item() for x in (precise, torch.cat(recalled), torch.cat(covered)))
    density = inside / (k_density * len(fake))
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def centred(*sets: Tensor) -> list[Tensor]:
    """Sets of points less the mean of the first, in float64: [n, d] each.

    Distances are computed by products of matrices, which lose what is small beside the norms: in float32 all digits of
    a spread of 1 at a mean of 500.
    """
    mean = sets[0].double().mean(0)
    return [points.double() - mean for points in sets]


def neighbour_distances(points: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """For each k the distance of every point to its k-th nearest neighbour among the others: float64 [n] each."""
    (points,) = centred(points)
    # The nearest of all is the point itself, at distance 0.
    smallest = [torch.cdist(rows, points).topk(max(ks) + 1, largest=False).values for rows in points.split(CHUNK)]
    distances = torch.cat(smallest)
    return [distances[:, k].contiguous() for k in ks]
