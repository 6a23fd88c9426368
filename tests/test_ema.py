import pytest
import torch
from torch import nn

from diffusers_ict.formulas.power_ema import power_exponent
from diffusers_ict.training.ema import exponential_average, note_on_equal_averages, power_average, variant_name
from diffusers_ict.training.recipe import parse


class Weight(nn.Module):
    """One weight, that begins at 0."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))

    def set(self, value: float) -> "Weight":
        self.weight.data.fill_(value)
        return self


def test_constant_weights_are_a_fixed_point_and_a_jump_decays_geometrically():
    for decay in (0.9, 0.5):
        net = Weight()
        average = exponential_average(net, decay)
        net.set(1)
        for _ in range(4):
            average.update()
        assert average.module.weight.item() == pytest.approx(1 - decay**4, rel=1e-6)


def test_warmup_averages_over_the_last_tenth_of_a_short_run():
    net = Weight()
    average, reference = exponential_average(net, 0.9999, warmup=True), 0.0
    for step in range(1000):
        now = min(0.9999, (1 + step) / (10 + step))
        reference = now * reference + (1 - now) * step
        net.set(step)
        average.update()
    assert average.module.weight.item() == pytest.approx(reference, rel=1e-4)
    assert 850 < average.module.weight.item() < 950


def test_a_power_function_average_weighs_the_steps_by_their_power():
    """Against the sum in its definition, with weights tau^exponent (EDM2, Eq. 1), for weights that are the step."""
    net, exponent, steps = Weight(), power_exponent(0.1), 500
    average = power_average(net, 0.1)
    for step in range(steps):
        net.set(step + 1)
        average.update()
    shares = torch.arange(1, steps + 1, dtype=torch.float64) ** exponent
    exact = (shares * torch.arange(1, steps + 1)).sum() / shares.sum()
    assert average.module.weight.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize("total_steps", [1, 8, 9, 10, 79, 80, 81, 82, 100])
def test_averages_that_the_warmup_makes_equal_are_told(total_steps):
    net = Weight()
    averages = [exponential_average(net, decay, warmup=True) for decay in (0.5, 0.9)]
    for _ in range(total_steps):
        net.weight.data.normal_()
        for average in averages:
            average.update()
    equal = torch.equal(*(average.module.weight for average in averages))
    assert equal == (note_on_equal_averages([0.5, 0.9], total_steps) is not None)
    assert note_on_equal_averages([0.9], total_steps) is None


@pytest.mark.parametrize(("name", "total_steps"), [("digits", 1200), ("small_budget", 8000), ("tune_ddpm", 8000)])
def test_recipes_of_short_runs_have_different_averages(name, total_steps):
    """At the length of the recipe, or that of its command in the README."""
    recipe = parse(["--config", name, "--max_train_steps", str(total_steps)], "train_ict.py", None)
    assert len(recipe.ema_decays) == 2
    assert not recipe.ema_warmup or note_on_equal_averages(recipe.ema_decays, total_steps) is None


def test_averages_are_float32_even_of_bfloat16_weights():
    net = Weight(torch.bfloat16)
    average = exponential_average(net, 0.9999)
    for _ in range(10):
        net.set(1)
        average.update()
    assert average.module.weight.item() == pytest.approx(1e-3, rel=1e-2)


def test_an_average_goes_on_where_its_steps_are_set():
    net = Weight()
    average = exponential_average(net, 0.9999, warmup=True)
    net.set(1)
    average.steps = 90
    average.update()
    assert average.module.weight.item() == pytest.approx(1 - 91 / 100, rel=1e-5)
    assert average.steps == 91


def test_variant_names_have_no_dot():
    assert [variant_name(d) for d in (0.9999, 0.99993, 0.5)] == ["ema9999", "ema99993", "ema5"]
