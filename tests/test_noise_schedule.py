import math

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler

from diffusers_ict import (
    act_num_levels,
    ct_num_levels,
    ct_teacher_decay,
    ict_num_levels,
    ict_weighting,
    karras_ramp,
    karras_sigmas,
    lognormal_pair_probabilities,
    rho_through,
    uniform_pair_probabilities,
)

STAGES = [11, 21, 41, 81, 161, 321, 641, 1281]


def test_ict_levels_double_at_each_of_eight_stages():
    for stage, levels in enumerate(STAGES):
        assert [ict_num_levels(k, 400_000) for k in (stage * 50_000, stage * 50_000 + 49_999)] == [levels, levels]
    assert {ict_num_levels(k, 1003) for k in range(1003)} == set(STAGES), "of stages that do not divide the steps"
    assert ict_num_levels(7, 8) == 1281
    with pytest.raises(ValueError, match="at least as many steps, got 7"):
        ict_num_levels(0, 7)


@pytest.mark.parametrize(
    ("num_levels", "step", "steps", "options", "expected"),
    [
        (ct_num_levels, 0, 800_000, {}, 2),
        (ct_num_levels, 400_000, 800_000, {}, 107),  # sqrt(1/2 (151^2 - 2^2) + 2^2) = 106.78, minus 1, up, plus 1
        (ct_num_levels, 799_999, 800_000, {}, 151),
        (ct_num_levels, 0, 100, {"s0": 1, "s1": 10}, 2),
        (act_num_levels, 0, 300_000, {}, 2),
        (act_num_levels, 150_000, 300_000, {}, 106),  # sqrt(1/2 (150^2 - 2^2) + 2^2) = 106.08, as its released code
        (act_num_levels, 299_999, 300_000, {}, 150),
        (act_num_levels, 399_999, 400_000, {"s1": 200}, 200),
        (act_num_levels, 0, 100, {"s0": 1, "s1": 10}, 2),
    ],
)
def test_levels_of_ct_and_act_follow_the_square_root(num_levels, step, steps, options, expected):
    assert num_levels(step, steps, **options) == expected


def test_the_teachers_decay_is_that_of_the_released_code():
    # exp(-c / scales) with c = -ln(0.9) 2 and scales = N - 1, as in create_ema_and_scales_fn
    assert ct_teacher_decay(2) == pytest.approx(0.81, abs=1e-15)
    assert ct_teacher_decay(151) == pytest.approx(math.exp(2 * math.log(0.9) / 150))
    assert ct_teacher_decay(151) == pytest.approx(0.9986, abs=1e-4)


def test_the_grid_is_that_of_diffusers_with_exact_ends():
    theirs = CMStochasticIterativeScheduler(num_train_timesteps=41).sigmas.flip(0)
    torch.testing.assert_close(karras_sigmas(41), theirs, rtol=1e-14, atol=0)
    sigmas = karras_sigmas(1281)
    assert (sigmas.shape, sigmas.dtype) == ((1281,), torch.float64)
    assert sigmas[[0, -1]].tolist() == [0.002, 80.0]
    assert (sigmas.diff() > 0).all()
    with pytest.raises(ValueError, match="at least 2 noise levels"):
        karras_sigmas(1)


def test_a_level_tells_its_place_in_the_grid():
    for levels in (2, 11, 1281):
        place = torch.arange(levels, dtype=torch.float64) / (levels - 1)
        torch.testing.assert_close(karras_ramp(karras_sigmas(levels)), place, rtol=0, atol=1e-14)
        assert karras_ramp(karras_sigmas(levels))[[0, -1]].tolist() == [0.0, 1.0]


def test_lognormal_probabilities_agree_with_a_histogram_of_lognormal_draws():
    sigmas = karras_sigmas(11)
    draws = np.exp(np.random.default_rng(0).normal(-1.1, 2.0, 400_000))
    counts, _ = np.histogram(draws, bins=sigmas.numpy())
    np.testing.assert_allclose(lognormal_pair_probabilities(sigmas).numpy(), counts / counts.sum(), atol=3e-3)
    # By hand for N = 3, with sigmas of 0.002, 2.5152 and 80: differences of erf((ln sigma + 1.1) / (2 sqrt 2)).
    assert karras_sigmas(3)[1].item() == pytest.approx(2.5152, abs=1e-4)
    assert lognormal_pair_probabilities(karras_sigmas(3)).tolist() == pytest.approx([0.8458, 0.1542], abs=1e-4)


def test_uniform_probabilities_are_equal_and_sum_to_one():
    p = uniform_pair_probabilities(karras_sigmas(151))
    assert p.shape == (150,)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.min() == p.max()


def test_mean_weights_of_the_eight_stages_equal_hand_numbers():
    means = []
    for levels in STAGES:
        sigmas = karras_sigmas(levels)
        weights = ict_weighting(sigmas[:-1], sigmas[1:])
        means.append((lognormal_pair_probabilities(sigmas) * weights).sum().item())
    np.testing.assert_allclose(means, [8.4, 17.5, 35, 71, 141, 282, 565, 1129], rtol=0.02)
    assert weights.max().item() == pytest.approx(2.6e4, rel=0.02)


def test_rho_through_lands_on_the_same_float32_for_any_sigma():
    for sigma, rho in ((0.821, 16.211778615771653), (1.526, 9.102204375138106)):
        assert rho_through(sigma) == pytest.approx(rho, rel=1e-12)
    for sigma in np.exp(np.linspace(math.log(0.45), math.log(30), 200)):
        stock = CMStochasticIterativeScheduler(rho=rho_through(float(sigma)))
        stock.set_timesteps(2)
        assert stock.sigmas[1].item() == np.float32(sigma)
    with pytest.raises(ValueError, match="choose an intermediate sigma in that range"):
        rho_through(0.01)
