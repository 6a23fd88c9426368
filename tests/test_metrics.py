"""The metrics against torchmetrics, torch-fidelity and naive references, on the same features."""

import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from diffusers_ict.evaluation import (
    Moments,
    coverage_measures,
    frechet_distance,
    inception_score,
    kernel_distance,
    metrics,
)

EXACT = 1e-6  # relative


class FirstPixels(nn.Module):
    """Features that are the first pixels of the first row: so features can be handed to torchmetrics as images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :24].double()


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of correlated whole numbers within 0 and 255, [600, 24] and [500, 24]."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(24, 24))
    real = 128 + 12 * rng.normal(size=(600, 24)) @ mix / 24**0.5
    fake = 131 + 14 * rng.normal(size=(500, 24)) @ mix / 24**0.5 + 5 * rng.normal(size=(500, 24))
    return tuple(torch.from_numpy(x.round().clip(0, 255)) for x in (real, fake))


def as_images(features: torch.Tensor) -> torch.Tensor:
    return features.to(torch.uint8)[:, None, None, :].expand(-1, 3, 2, -1)


def test_frechet_distance_equals_torchmetrics(sets, fidelity):
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=FirstPixels())
    theirs.set_dtype(torch.float64)
    for features, real in zip(sets, (True, False)):
        theirs.update(as_images(features), real=real)
    assert frechet_distance(*sets) == pytest.approx(theirs.compute().item(), rel=EXACT)


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_set_to_itself_0():
    a = torch.randn(300, 5, dtype=torch.float64)
    shift = torch.tensor([1.0, 2.0, 0, 0, 0], dtype=torch.float64)
    assert frechet_distance(a, a + shift) == pytest.approx(5.0, rel=1e-9)
    assert abs(frechet_distance(a, a)) < 1e-9


def test_moments_in_pieces_equal_those_of_the_whole():
    x = 1000 + torch.randn(777, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(x[:0])
    for rows in x.split(100):
        moments.update(rows)
    assert moments.count == 777
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-12)
    assert frechet_distance(moments, x * 2) == pytest.approx(frechet_distance(x, x * 2), rel=1e-9)


def test_kernel_distance_equals_torch_fidelity(sets, fidelity):
    real, fake = sets
    theirs = fidelity("metric_kid").kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=20, kid_subset_size=100, verbose=False
    )
    mean, deviation = kernel_distance(real, fake, subsets=20, subset_size=100)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=EXACT)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=EXACT)


def test_kernel_distance_is_unbiased():
    """Between samples of one distribution its mean is 0, where the biased estimate is not."""
    x, y = torch.randn(2, 4000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, deviation = kernel_distance(x, y, subsets=200, subset_size=50)
    assert abs(mean) < 4 * deviation / 200**0.5


def test_inception_score_equals_torch_fidelity(fidelity):
    logits = 3 * torch.randn(503, 24, generator=torch.Generator().manual_seed(0)).double()
    theirs = fidelity("metric_isc").isc_features_to_metric(logits)
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=EXACT)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=EXACT)


def test_inception_score_of_certain_balanced_classes_is_their_number():
    logits = 1000 * torch.eye(7).repeat(30, 1)
    assert inception_score(logits, splits=1)[0] == pytest.approx(7.0, rel=1e-9)


def balls(centres, k):
    return [sorted(np.linalg.norm(c - other) for other in centres)[k] for c in centres]


def naive_coverage(points, centres, k):
    radii = balls(centres, k)
    return sum(any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii)) for p in points) / len(points)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_precision_recall_density_and_coverage_equal_a_naive_reference(chunk, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(60, 3)), rng.normal(size=(50, 3)) * 1.5 + 0.3
    got = coverage_measures(torch.from_numpy(real), torch.from_numpy(fake), k=3, k_density=5)
    assert got["precision"] == pytest.approx(naive_coverage(fake, real, 3), abs=1e-9)
    assert got["recall"] == pytest.approx(naive_coverage(real, fake, 3), abs=1e-9)
    radii = balls(real, 5)
    inside = np.array([[np.linalg.norm(f - r) <= radius for f in fake] for r, radius in zip(real, radii)])
    assert got["density"] == pytest.approx(inside.sum() / (5 * len(fake)), abs=1e-9)
    assert got["coverage"] == pytest.approx(inside.any(1).mean(), abs=1e-9)


@pytest.mark.parametrize("apart", [0, 3500])
def test_features_far_from_0_have_the_neighbours_that_scipy_finds(apart):
    """With a mean of 500 and a spread of 1, and in two groups far apart, in float32."""
    spatial = pytest.importorskip("scipy.spatial.distance")
    generator = torch.Generator().manual_seed(0)
    real, fake = (500 + torch.randn(n, 32, generator=generator) for n in (400, 300))
    real[::2] += apart
    fake[::3] += apart
    a, b = real.double().numpy(), fake.double().numpy()
    among_real, among_fake, between = (
        np.sort(spatial.cdist(a, a)),
        np.sort(spatial.cdist(b, b)),
        spatial.cdist(a, b),
    )
    assert coverage_measures(real, fake) == {
        "precision": (between <= among_real[:, [3]]).any(0).mean(),
        "recall": (between <= among_fake[:, 3]).any(1).mean(),
        "density": (between <= among_real[:, [5]]).sum() / (5 * 300),
        "coverage": (between <= among_real[:, [5]]).any(1).mean(),
    }
    (nearest,) = metrics.neighbour_distances(real, (1,))
    np.testing.assert_allclose(nearest, among_real[:, 1], rtol=1e-7)


@pytest.mark.parametrize("shift", [0, 500])
def test_copies_are_on_the_surface_of_their_balls(shift):
    """Each of a few points appears often: radii are 0, and so are the distances of copies."""
    points = shift + torch.rand(5, 16, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    found = coverage_measures(points, points.flip(0))
    assert found == {"precision": 1, "recall": 1, "density": 4, "coverage": 1}  # 20 copies of each of 5 neighbours


def test_moving_both_sets_by_500_leaves_their_frechet_distance():
    real, fake = torch.randn(2, 300, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = frechet_distance(real, 1.2 * fake)
    assert frechet_distance(500 + real, 500 + 1.2 * fake) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_features_far_from_0_is_that_of_exact_fractions():
    generator = torch.Generator().manual_seed(0)
    real, fake = (500 + torch.randn(12, 4, generator=generator) for _ in range(2))
    rows = [[[Fraction(v) for v in row] for row in x.tolist()] for x in (real, fake)]

    def total(a, b):
        values = [[(sum(map(operator.mul, x, y)) / 4 + 1) ** 3 for y in b] for x in a]
        return sum(map(sum, values)), sum(values[i][i] for i in range(12))

    (rr, r), (ff, f), (rf, _) = total(rows[0], rows[0]), total(rows[1], rows[1]), total(*rows)
    exact = (rr - r + ff - f) / (12 * 11) - 2 * rf / 12**2
    assert kernel_distance(real, fake, 1, 12)[0] == pytest.approx(float(exact), rel=1e-8)


def test_precision_and_recall_equal_torch_fidelity(sets, fidelity):
    real, fake = (x.float() + torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) for x in sets)
    precision, recall = fidelity("metric_prc").calculate_precision_recall_part(fake, real)
    got = coverage_measures(real, fake)
    assert got["precision"] == pytest.approx(precision, rel=EXACT)
    assert got["recall"] == pytest.approx(recall, rel=EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_figures_of_the_cpu(sets):
    here, there = ([held.to(device) for held in sets] for device in ("cpu", "cuda"))
    assert frechet_distance(*there) == pytest.approx(frechet_distance(*here), rel=1e-6)
    assert kernel_distance(*there, 10, 50) == pytest.approx(kernel_distance(*here, 10, 50), rel=1e-6)
    assert coverage_measures(*there) == pytest.approx(coverage_measures(*here), rel=1e-6)
