import math

import numpy as np
import pytest
import torch

from diffusers_ict.formulas.power_ema import inner_product, power_decay, power_exponent, reconstruction, relative_std


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56)])
def test_exponents_are_those_of_the_paper(std, exponent):
    """EDM2's network is tracked with 6.94 and 16.97; the cubic of its Algorithm 2 has the same root."""
    assert power_exponent(std) == pytest.approx(exponent, abs=0.01)
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    assert power_exponent(std) == pytest.approx(roots.real.max(), rel=1e-9)
    assert relative_std(power_exponent(std)) == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, math.nan])
def test_deviations_without_a_profile_are_refused(std):
    with pytest.raises(ValueError, match=r"must be between 0 and 0\.289"):
        power_exponent(std)


def profile(steps: int, exponent: float, length: int) -> np.ndarray:
    """The weight of each of `length` steps in the average, by running it."""
    weights = np.zeros(length)
    for step in range(1, steps + 1):
        decay = power_decay(step, exponent)
        weights *= decay
        weights[step - 1] += 1 - decay
    return weights


def test_the_running_average_has_the_profile_of_the_formula():
    made, times = profile(400, 6.94, 400), np.arange(1, 401) / 400
    assert made.sum() == pytest.approx(1)
    assert np.sqrt(np.cov(times, aweights=made, ddof=0)) == pytest.approx(0.10, rel=0.01)


@pytest.mark.parametrize(("a", "b"), [((400, 6.94), (400, 16.97)), ((100, 6.94), (400, 6.94)), ((400, 3.0), (50, 9.0))])
def test_inner_products_are_those_of_profiles(a, b):
    length = 4000
    first, second = (profile(10 * steps, exponent, length) for steps, exponent in (a, b))
    assert inner_product(a, b) == pytest.approx(10 * (first * second).sum(), rel=0.02)
    assert inner_product(a, b) == inner_product(b, a)


@pytest.mark.parametrize(
    ("std", "every", "centre", "tolerance"),
    [(0.04, 25, 0, 5e-3), (0.075, 25, 0, 5e-3), (0.12, 25, 0, 5e-3), (0.2, 125, 100, 1e-3), (0.2, 250, 100, 1e-3)],
)
def test_a_reconstructed_average_agrees_with_a_tracked_one(std, every, centre, tolerance):
    """Of a random walk about `centre`, as weights take it; few snapshots must not shrink what all weights share."""
    rng = np.random.default_rng(0)
    steps = 1000
    weights = centre + torch.from_numpy(rng.normal(size=(steps, 200)).cumsum(0)) / (100 if centre else 1)
    exponents = [power_exponent(0.05), power_exponent(0.10)]
    tracked = {exponent: torch.zeros(200, dtype=torch.float64) for exponent in [*exponents, power_exponent(std)]}
    snapshots, kept = [], []
    for step in range(1, steps + 1):
        for exponent, average in tracked.items():
            average.lerp_(weights[step - 1], 1 - power_decay(step, exponent))
        if step % every == 0:
            for exponent in exponents:
                snapshots.append((step, exponent))
                kept.append(tracked[exponent].clone())
    mixture, distance = reconstruction(snapshots, (steps, power_exponent(std)))
    wanted = tracked[power_exponent(std)]
    assert (mixture @ torch.stack(kept) - wanted).norm() < tolerance * wanted.norm()
    assert mixture.sum() == pytest.approx(1, abs=1e-12)
    assert distance < (0.05 if every == 25 else 0.5)
