import math

import pytest
import torch

from diffusers_ict import cauchy, pseudo_huber, pseudo_huber_constant, squared_l2


def test_constant_equals_hand_numbers():
    assert pseudo_huber_constant(3 * 32 * 32) == pytest.approx(0.02993, abs=1e-5)
    assert pseudo_huber_constant(3 * 64 * 64) == pytest.approx(0.05986, abs=1e-5)


def test_pseudo_huber_is_one_number_per_sample_from_the_vector_norm():
    # ||0.01 * ones(3072)|| = 0.5543; sqrt(0.5543^2 + 0.02993^2) - 0.02993 = 0.525. Element-wise it would be far less.
    a = torch.zeros(2, 3, 32, 32)
    b = torch.full((2, 3, 32, 32), 0.01)
    distance = pseudo_huber(a, b)
    assert distance.shape == (2,)
    assert distance[0].item() == pytest.approx(0.525, abs=5e-4)
    norm, c = 0.01 * math.sqrt(3072), 0.00054 * math.sqrt(3072)
    assert distance[1].item() == pytest.approx(math.sqrt(norm**2 + c**2) - c, rel=1e-5)


def test_without_a_constant_it_is_the_norm_whose_gradient_is_zero_at_zero():
    a = torch.tensor([[3.0, 4.0], [1.0, 2.0]], requires_grad=True)
    distance = pseudo_huber(a, torch.tensor([[0.0, 0.0], [1.0, 2.0]]), c=0)
    assert distance.tolist() == [5.0, 0.0]
    distance.sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    zero = torch.zeros(1, 100, dtype=torch.float64)
    near, far = torch.full_like(zero, 1e-5), torch.full_like(zero, 10.0)
    assert pseudo_huber(zero, near, c=1.0).item() == pytest.approx(100 * 1e-10 / 2, rel=1e-3)
    assert pseudo_huber(zero, far, c=1.0).item() == pytest.approx(math.sqrt(100 * 100 + 1) - 1, rel=1e-12)


def test_squared_l2_is_the_mean_over_a_sample():
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert squared_l2(a, b).tolist() == [1.0, 4.0]


def test_cauchy_equals_hand_numbers_and_forgets_outliers():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e4, 4e4]], dtype=torch.float64, requires_grad=True)
    distance = cauchy(a, torch.zeros_like(a), c=1.0)
    # log(13.5); log(1.25e9 + 1) = log(1.25) + 9 log(10)
    assert distance.tolist() == pytest.approx([2.602689685, 0.0, 20.946409389], abs=1e-8)
    distance.sum().backward()
    # (a - b) / (c^2 + ||a - b||^2 / 2): 2 / ||a - b|| far away, where pseudo-Huber's has the norm 1.
    expected = torch.tensor([[3 / 13.5, 4 / 13.5], [0.0, 0.0], [0.6 * 2 / 5e4, 0.8 * 2 / 5e4]], dtype=torch.float64)
    torch.testing.assert_close(a.grad, expected, rtol=1e-8, atol=0)


def test_cauchy_has_the_constant_of_pseudo_huber_and_one_number_per_sample():
    a, b = torch.zeros(2, 4, 8, 8), torch.full((2, 4, 8, 8), 0.01)
    distance = cauchy(a, b)
    assert distance.shape == (2,)
    assert distance[0].item() == pytest.approx(math.log(1 + 0.0256 / (2 * 0.00054**2 * 256)), rel=1e-5)
