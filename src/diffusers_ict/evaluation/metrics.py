"""Distances between two sets of features, each [n, d]."""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al. (arXiv:1706.08500), in float64.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric:
    no complex square root of a matrix is needed.

    Args:
        a, b: features, [n, d] and [m, d].
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1000) -> tuple[float, float]:
    """Improved precision and recall, Kynkaanniemi et al. (arXiv:1904.06991).

    Precision is the share of fakes that lie within some real sample's distance to its k-th nearest neighbour;
    recall is the same with the roles exchanged.

    Args:
        real, fake: features, [n, d] and [m, d].
        k: which neighbour sets the radius.
        chunk: rows of the distance matrix held at once.
    """
    real, fake = real.float(), fake.float()
    return _covered(fake, real, k, chunk), _covered(real, fake, k, chunk)


def _covered(points: Tensor, centres: Tensor, k: int, chunk: int) -> float:
    """Share of `points` inside the ball of some centre."""
    # The nearest neighbour of a centre is itself, at distance 0.
    radii = torch.cat([torch.cdist(rows, centres).kthvalue(k + 1, dim=1).values for rows in centres.split(chunk)])
    inside = [(torch.cdist(rows, centres) <= radii).any(1) for rows in points.split(chunk)]
    return torch.cat(inside).float().mean().item()
