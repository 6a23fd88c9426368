import math

import pytest
import torch
from conftest import make_unet

from diffusers_ict import CT, ECT, ICT, ConsistencyFunction, Objective, consistency_pair, karras_sigmas, squared_l2
from diffusers_ict.formulas.preconditioning import per_image
from diffusers_ict.training.estimate import stages


def one_step(objective, f, x, **more):
    """Losses [B] of a batch whose pairs are drawn by the objective."""
    sigma, sigma_next = objective.sample_pair(torch.rand(len(x), dtype=torch.float64), 0, 1)
    pair = consistency_pair(f, x, torch.randn_like(x), sigma.to(x.dtype), sigma_next.to(x.dtype), **more)
    return objective.loss(pair)


def test_loss_vanishes_on_the_point_mass_oracle():
    mu = 0.3

    def f(x, sigma, labels):
        return mu + (x - mu) * 0.002 / per_image(sigma, x)

    x = torch.full((64, 1, 8, 8), mu, dtype=torch.float64)
    for objective in (ICT(1280, 1280), ECT(256), CT(1280, 1280)):
        assert one_step(objective, f, x).abs().max() < 1e-9
    pair = consistency_pair(f, x, torch.randn_like(x), torch.full((64,), 0.5), torch.full((64,), 0.6))
    assert (pair.student - pair.target).abs().max() <= 4.5e-16


def test_on_gaussian_data_the_loss_pulls_a_wrong_variance_towards_the_true_one():
    v = 0.25
    x = torch.randn(100_000, 1, dtype=torch.float64) * math.sqrt(v)

    def gradient(guess: float) -> float:
        parameter = torch.tensor(guess, dtype=torch.float64, requires_grad=True)

        def f(x, sigma, labels):
            s = per_image(sigma, x)
            return x * ((parameter + 0.002**2) / (parameter + s**2)).sqrt()

        torch.manual_seed(0)
        pair = consistency_pair(f, x, torch.randn_like(x), torch.full((len(x),), 0.5), torch.full((len(x),), 0.505))
        squared_l2(pair.student, pair.target).mean().backward()
        return parameter.grad.item() / 0.005

    assert gradient(0.15) < -0.01
    assert gradient(0.40) > 0.01
    assert abs(gradient(0.25)) < 0.01


def test_scaled_gradient_tends_to_the_hand_number_without_a_lag_and_diverges_with_one():
    # Point mass at xi = 0.3 and f = (smin / s) x + (1 - smin / s) theta, at s = 0.5 and theta = 1.
    def scaled_gradient(gap: float, lag: float) -> float:
        theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

        def with_parameter(value):
            def f(x, sigma, labels):
                ratio = 0.002 / per_image(sigma, x)
                return ratio * x + (1 - ratio) * value

            return f

        x = torch.full((1, 1), 0.3, dtype=torch.float64)
        sigma = torch.full((1,), 0.5, dtype=torch.float64)
        f, teacher = with_parameter(theta), with_parameter(theta.detach() * lag)
        pair = consistency_pair(f, x, torch.randn_like(x), sigma, sigma + gap, teacher=teacher)
        (squared_l2(pair.student, pair.target) / gap).sum().backward()
        return theta.grad.item()

    assert scaled_gradient(1e-6, 1.0) == pytest.approx(0.01115520, abs=1e-6)
    assert scaled_gradient(1e-4, 0.99) > 100
    assert scaled_gradient(1e-5, 0.99) > 9 * scaled_gradient(1e-4, 0.99)


def test_no_gradient_flows_through_the_teacher():
    student, teacher = make_unet(0), make_unet(1)
    f, target = ConsistencyFunction(student), ConsistencyFunction(teacher)
    x, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), 1.0)
    CT().loss(consistency_pair(f, x, torch.randn_like(x), sigma, sigma * 1.5, teacher=target)).mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad.abs().max() > 0 for p in student.parameters())


def test_with_its_own_teacher_the_gradient_is_that_of_a_constant_target():
    unet = make_unet()
    f = ConsistencyFunction(unet)
    x, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), 1.0)
    z = torch.randn_like(x)
    ICT().loss(consistency_pair(f, x, z, sigma, sigma * 1.5)).mean().backward()
    gradients = [p.grad.clone() for p in unet.parameters()]
    unet.zero_grad()
    with torch.no_grad():
        target = f(x + z, sigma)
    residual = (f(x + 1.5 * z, sigma * 1.5) - target).flatten(1)
    c = 0.00054 * 8
    (((residual**2).sum(1) + c**2).sqrt() - c).div(0.5).mean().backward()
    for p, gradient in zip(unet.parameters(), gradients):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_noisier_point_carries_the_gradient_and_noise_is_shared():
    seen = []

    def f(x, sigma, labels):
        seen.append((x, sigma, torch.is_grad_enabled()))
        return x

    x, z = torch.zeros(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    consistency_pair(f, x, z, torch.full((2,), 0.5), torch.full((2,), 2.0))
    (noisy, high, with_gradient), (clean, low, without) = seen
    assert (high > low).all()
    assert with_gradient
    assert not without
    assert torch.equal(noisy / 2.0, clean / 0.5)


def test_losses_are_one_per_sample_and_weighted_and_taught_as_published():
    x = torch.randn(16, 1, 8, 8)
    f = ConsistencyFunction(make_unet())
    sigma, sigma_next = torch.full((16,), 1.0), torch.full((16,), 1.25)
    pair = consistency_pair(f, x, torch.randn_like(x), sigma, sigma_next)
    assert ICT().loss(pair).shape == (16,)
    torch.testing.assert_close(ICT().loss(pair), 4 * ICT().distance(pair))
    torch.testing.assert_close(CT().loss(pair), CT().distance(pair))
    assert (ICT().teacher_decay(0, 100), CT().teacher_decay(0, 100)) == (None, pytest.approx(0.81))


def test_pair_difference_in_bfloat16_training_equals_float32s_at_1281_levels():
    sigmas = karras_sigmas(1281)
    pairs = torch.arange(0, 1280, 10)
    x, z = torch.rand(len(pairs), 1, 8, 8) * 2 - 1, torch.randn(len(pairs), 1, 8, 8)
    exact = (sigmas[pairs + 1] - sigmas[pairs]).view(-1, 1, 1, 1) * z.double()

    def difference(half: bool) -> torch.Tensor:
        inputs = []

        def f(x, sigma, labels):
            inputs.append(x)
            return unet_f(x, sigma, labels)

        unet_f = ConsistencyFunction(make_unet())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            consistency_pair(f, x, z, sigmas[pairs].float(), sigmas[pairs + 1].float())
        assert all(t.dtype == torch.float32 for t in inputs)
        return inputs[0] - inputs[1]

    assert torch.equal(difference(True), difference(False))
    relative = ((difference(True).double() - exact) / exact).abs()
    assert relative.median() < 1e-5


@pytest.mark.parametrize("objective", [ICT(), CT()], ids=["ict", "ct"])
def test_pairs_are_drawn_as_often_as_the_objective_says(objective):
    step, total = 500, 1000
    sigmas, count = objective.grid(step, total), 200_000
    sigma, sigma_next = objective.sample_pair(torch.rand(count, dtype=torch.float64), step, total)
    place = torch.searchsorted(sigmas, sigma)
    assert torch.equal(sigmas[place], sigma)
    assert torch.equal(sigmas[place + 1], sigma_next)
    drawn = torch.bincount(place, minlength=len(sigmas) - 1) / count
    wanted = objective.pair_probabilities(sigmas)
    assert ((drawn - wanted).abs() < 5 * (wanted / count).sqrt() + 1e-5).all()
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    sigma, sigma_next = objective.sample_pair(ends, step, total)
    assert sigma.tolist() == [sigmas[0].item(), sigmas[-2].item()]
    assert sigma_next.tolist() == [sigmas[1].item(), sigmas[-1].item()]


@pytest.mark.parametrize(("step", "mean"), [(0, 8.4), (50_000, 17.5), (399_999, 1129)])
def test_the_mean_weight_is_that_of_the_published_stages(step, mean):
    exact = ICT().mean_weight(step, 400_000)
    assert exact == pytest.approx(mean, rel=6e-3)
    assert Objective.mean_weight(ICT(), step, 400_000) == pytest.approx(exact, rel=2e-3), "by sampling"


def test_the_stages_of_the_longest_run_are_computed_at_once():
    levels = [values["num_levels"] for _, values in stages(ICT(), 10**12 - 1)]
    assert levels == [10 * 2**k + 1 for k in range(8)]
    for objective in (ICT(), CT()):
        walked = [k for k in range(300) if k == 0 or objective.schedule(k, 300) != objective.schedule(k - 1, 300)]
        assert [step for step, _ in stages(objective, 300)] == walked
