"""The couplings of benchmarks/coupled_train.py, against their definitions."""

import itertools
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from coupled_train import StratifiedDraw, generated, share_at, stratified, transported


def test_the_noise_is_exchanged_within_classes_for_the_least_squared_distance():
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(6, 1, 2, 2, generator=rng) for _ in range(2))
    labels = torch.tensor([0, 1, 0, 1, 0, 0])

    def cost(order):
        return (x - noise[list(order)]).square().sum().item()

    orders = list(itertools.permutations(range(6)))
    within = [order for order in orders if torch.equal(labels[list(order)], labels)]
    for given, allowed in ((labels, within), (None, orders)):
        best = min(allowed, key=cost)
        assert torch.equal(transported(x, noise, given), noise[list(best)])
    assert min(map(cost, within)) > min(map(cost, orders)), "the classes do not matter here"


def test_a_share_of_the_images_are_the_models_own():
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(4, 1, 2, 2, generator=rng) for _ in range(2))
    weight = torch.tensor(0.5, requires_grad=True)
    sigma, labels = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.arange(4)

    def f(noisy, level, classes):
        return weight * noisy + level[:, None, None, None] + classes[:, None, None, None]

    mixed = generated(f, x, noise, sigma, labels, 2)
    for n in range(2):
        own = 0.5 * (x[n] + sigma[n] * noise[n]) + sigma[n] + n
        torch.testing.assert_close(mixed[n], own.clamp(-1, 1))
    assert torch.equal(mixed[2:], x[2:])
    assert not mixed.requires_grad
    assert generated(f, x, noise, sigma, labels, 0) is x


def test_the_share_grows_through_the_second_quarter():
    assert [share_at(k / 8, 0.6) for k in range(6)] == pytest.approx([0, 0, 0, 0.3, 0.6, 0.6])


def test_stratified_levels_lie_one_in_each_part_and_are_uniform_each():
    independent = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.stack([stratified(row) for row in independent])
    assert torch.equal((8 * drawn).floor(), torch.arange(8.0, dtype=torch.float64).expand(2000, 8))
    assert torch.allclose(8 * drawn % 1, independent)
    of_a_step = StratifiedDraw(0, 3, 8, "cpu").pair_uniform()
    assert torch.equal((8 * of_a_step).floor(), torch.arange(8.0, dtype=torch.float64))
