import numpy as np
import pytest
import torch
from conftest import make_unet

from diffusers_ict import ConsistencyFunction, c_noise, c_out, c_skip, denoise, scale_input


def test_boundary_condition_is_exact_for_any_network():
    f = ConsistencyFunction(make_unet().eval())
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(f(x, torch.full((4,), 0.002)), x)


def test_scalings_equal_hand_numbers_at_sigma_one():
    # sigma_data 0.5, sigma_min 0.002: c_skip = 0.25 / (0.998^2 + 0.25), c_out = 0.998 * 0.5 / sqrt(1.25)
    one = torch.ones((), dtype=torch.float64)
    assert c_skip(one).item() == pytest.approx(0.25 / (0.996004 + 0.25), rel=1e-6)
    assert c_out(one).item() == pytest.approx(0.499 / np.sqrt(1.25), rel=1e-12)
    assert scale_input(one, one).item() == pytest.approx(1 / np.sqrt(1.25), rel=1e-12)
    assert c_noise(torch.tensor(np.e)).item() == pytest.approx(250, rel=1e-6)


def test_scaled_input_has_unit_variance_at_every_level():
    x = torch.randn(200_000, dtype=torch.float64) * 0.5
    z = torch.randn(200_000, dtype=torch.float64)
    for sigma in (0.002, 0.5, 80.0):
        s = torch.tensor(sigma, dtype=torch.float64)
        assert scale_input(x + s * z, s).std().item() == pytest.approx(1, abs=0.01)


def test_scalings_equal_those_of_stock_diffusers_bit_for_bit():
    from diffusers import CMStochasticIterativeScheduler

    sigma = torch.exp(torch.linspace(-6, 4.3, 100))
    skip, out = CMStochasticIterativeScheduler().get_scalings_for_boundary_condition(sigma)
    assert torch.equal(c_skip(sigma), skip)
    assert torch.equal(c_out(sigma), out)


def test_consistency_function_is_float32_around_a_half_precision_network():
    f = ConsistencyFunction(lambda x, t, class_labels, return_dict: (x.bfloat16(),))
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 5.0])
    level = sigma.view(2, 1, 1, 1)
    expected = denoise(scale_input(x, level).bfloat16().float(), x, level)
    result = f(x, sigma)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
