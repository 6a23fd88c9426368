import pytest
import torch

from diffusers_ict.training.ema import EMA, note_on_equal_averages, variant_name
from diffusers_ict.training.recipe import parse


def test_constant_weights_are_a_fixed_point_and_a_jump_decays_geometrically():
    weights = {"w": torch.zeros(3)}
    ema = EMA(weights.items(), [0.9, 0.5])
    weights["w"].fill_(1)
    for step in range(4):
        ema.update(step)
    for decay in (0.9, 0.5):
        torch.testing.assert_close(ema.state_dict(decay)["w"], torch.full((3,), 1 - decay**4))


def test_warmup_averages_over_the_last_tenth_of_a_short_run():
    weight = torch.zeros(1)
    ema = EMA([("w", weight)], [0.9999], warmup=True)
    reference = 0.0
    for step in range(1000):
        now = min(0.9999, (1 + step) / (10 + step))
        reference = now * reference + (1 - now) * step
        weight.fill_(step)
        ema.update(step)
    value = ema.state_dict(0.9999)["w"].item()
    assert value == pytest.approx(reference, rel=1e-4)
    assert 850 < value < 950


@pytest.mark.parametrize("total_steps", [1, 8, 9, 10, 79, 80, 81, 82, 100])
def test_averages_that_the_warmup_makes_equal_are_told(total_steps):
    weight = torch.zeros(1)
    ema = EMA([("w", weight)], [0.5, 0.9], warmup=True)
    for step in range(total_steps):
        weight.normal_()
        ema.update(step)
    equal = torch.equal(*(ema.state_dict(decay)["w"] for decay in (0.5, 0.9)))
    assert equal == (note_on_equal_averages([0.5, 0.9], total_steps) is not None)
    assert note_on_equal_averages([0.9], total_steps) is None


@pytest.mark.parametrize(("name", "total_steps"), [("digits", 1200), ("small_budget", 8000), ("tune_ddpm", 8000)])
def test_recipes_of_short_runs_have_different_averages(name, total_steps):
    """At the length of the recipe, or that of its command in the README."""
    recipe = parse(["--config", name, "--max_train_steps", str(total_steps)], "train_ict.py", None)
    assert len(recipe.ema_decays) == 2
    assert not recipe.ema_warmup or note_on_equal_averages(recipe.ema_decays, total_steps) is None


def test_shadows_are_float32_even_of_bfloat16_weights():
    weight = torch.zeros(1, dtype=torch.bfloat16)
    ema = EMA([("w", weight)], [0.9999])
    weight.fill_(1)
    for step in range(10):
        ema.update(step)
    assert ema.state_dict(0.9999)["w"].item() == pytest.approx(1e-3, rel=1e-2)


def test_copies_into_a_model():
    model = torch.nn.Linear(2, 2)
    ema = EMA(model.named_parameters(), [0.5])
    start = model.weight.detach().clone()
    model.weight.data += 1
    ema.copy_to(model, 0.5)
    assert torch.equal(model.weight, start)


def test_variant_names_have_no_dot():
    assert [variant_name(d) for d in (0.9999, 0.99993, 0.5)] == ["ema9999", "ema99993", "ema5"]
