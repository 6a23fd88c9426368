import numpy as np
import pytest
import scipy.linalg
import torch

from diffusers_ict.evaluation import frechet_distance, precision_recall


def test_frechet_distance_equals_the_formula_with_a_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(400, 12)) + 0.5
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_set_to_itself_0():
    a = torch.randn(300, 5, dtype=torch.float64)
    shift = torch.tensor([1.0, 2.0, 0, 0, 0], dtype=torch.float64)
    assert frechet_distance(a, a + shift) == pytest.approx(5.0, rel=1e-9)
    assert abs(frechet_distance(a, a)) < 1e-9


def naive_coverage(points, centres, k):
    inside = 0
    radii = [sorted(np.linalg.norm(c - other) for other in centres)[k] for c in centres]
    for p in points:
        inside += any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii))
    return inside / len(points)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_precision_and_recall_equal_a_naive_reference(chunk):
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(60, 3)), rng.normal(size=(50, 3)) * 1.5 + 0.3
    precision, recall = precision_recall(torch.from_numpy(real), torch.from_numpy(fake), k=3, chunk=chunk)
    assert precision == pytest.approx(naive_coverage(fake, real, 3), abs=1e-6)
    assert recall == pytest.approx(naive_coverage(real, fake, 3), abs=1e-6)
