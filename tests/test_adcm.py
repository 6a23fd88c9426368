"""Noise levels that a network chooses, against closed forms, and runs with them."""

import math

import pytest
import torch
from oracle import gaussian_f
from short_run import assert_bitwise_equal, final_tensors, run

from diffusers_ict.errors import UserError
from diffusers_ict.formulas.adaptive_grid import MOST_LEVELS, adaptive_levels, step_size, step_sums
from diffusers_ict.objectives.adcm import ADCM
from diffusers_ict.training.checkpoint import list_checkpoints, load
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.start import make_objective

VARIANCE, TRADE_OFF = 0.25, 0.001
# Images and noise that have the exact moments of a Gaussian: variances 1/4 and 1, and no covariance.
X = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64).view(4, 1, 1, 1)
Z = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(4, 1, 1, 1)


def exact_f(x, sigma, labels=None):
    return gaussian_f(x, sigma.view(-1, 1, 1, 1), VARIANCE)


def exact_step(t: float) -> float:
    """D*(t) for f(x) = a x of Gaussian data: E<v, f - x> and E|v|^2 by hand, v = a' (x + t z) + a z."""
    whole = VARIANCE + t**2
    a = math.sqrt((VARIANCE + 0.002**2) / whole)
    slope = -a * t / whole
    along = slope * (a * whole - VARIANCE) + a * a * t
    squared = slope**2 * whole + 2 * slope * a * t + a**2
    return TRADE_OFF * along / ((1 + TRADE_OFF) * squared)


@pytest.mark.parametrize("t", [0.05, 0.7, 9.0])
def test_the_step_of_gaussian_data_is_the_one_computed_by_hand(t):
    level, h = torch.full((4,), t, dtype=torch.float64), 1e-6 * t
    here, before = exact_f(X + t * Z, level), exact_f(X + (t - h) * Z, level - h)
    step = step_size(step_sums(here, before, X, h), TRADE_OFF)
    assert step.item() == pytest.approx(exact_step(t), rel=1e-4)


def test_the_step_minimises_what_the_paper_minimises():
    f_minus_x, velocity = torch.randn(50, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    best = step_size(step_sums(f_minus_x, f_minus_x - velocity, torch.zeros_like(velocity), 1.0), TRADE_OFF)

    def error(step):
        near, far = (step * velocity).square().sum(), (f_minus_x - step * velocity).square().sum()
        return (near + TRADE_OFF * far).item()

    assert all(error(best) <= error(best * scale) for scale in (0.9, 1.1))


def test_levels_follow_the_steps_from_sigma_max_to_sigma_min():
    levels = adaptive_levels(exact_f, X, Z, None, TRADE_OFF)
    expected = [80.0]
    while expected[-1] > 1 and len(expected) < 20:
        expected.append(expected[-1] - exact_step(expected[-1]))
    assert len(expected) > 3
    # The finite difference of 1 % of a level moves a step by about as much.
    torch.testing.assert_close(
        levels.flip(0)[: len(expected)], torch.tensor(expected, dtype=torch.float64), rtol=0.02, atol=0
    )
    assert levels[0] == 0.002
    assert (levels.diff() > 0).all()


@pytest.mark.parametrize("f", [lambda x, sigma, labels: x, lambda x, sigma, labels: torch.full_like(x, torch.nan)])
def test_there_are_never_more_levels_than_icts_last_stage_has(f):
    levels = adaptive_levels(f, X, Z, None, 1e-12)
    assert len(levels) == pytest.approx(MOST_LEVELS, abs=2)
    assert levels[0] == 0.002
    assert levels[-1] == 80


def test_two_processes_choose_the_levels_of_all_their_images():
    whole = adaptive_levels(exact_f, X, Z, None, TRADE_OFF)
    # By symmetry both halves have the same sums, so that twice one half's are those of all images.
    half = adaptive_levels(exact_f, X[:2], Z[:2], None, TRADE_OFF, total=lambda own: 2 * own)
    torch.testing.assert_close(half, whole)


def test_pairs_are_neighbours_in_the_levels_with_the_probabilities_of_a_lognormal():
    objective = ADCM()
    objective.memory.load_state({"sigmas": [0.002, 0.1, 1.0, 80.0]})
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    sigma, sigma_next = objective.sample_pair(uniform, 5, 10)
    below = [torch.distributions.Normal(-1.1, 2.0).cdf(torch.tensor(s).log()).item() for s in (0.002, 0.1, 1.0, 80.0)]
    for i, (low, high) in enumerate([(0.002, 0.1), (0.1, 1.0), (1.0, 80.0)]):
        share = ((sigma == low) & (sigma_next == high)).double().mean().item()
        assert share == pytest.approx((below[i + 1] - below[i]) / (below[3] - below[0]), abs=2e-4)


def test_levels_are_chosen_at_equal_distances_from_the_end_of_the_alignment_on():
    chosen = [step for step in range(100) if ADCM(align_steps=20, rebuilds=4).rebuilds_after(step, 100)]
    assert chosen == [19, 39, 59, 79]
    assert [step for step in range(12) if ADCM(rebuilds=3).rebuilds_after(step, 12)] == [0, 4, 8]


def test_an_alignment_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="alignment of 12 steps"):
        make_objective(Recipe(loss="adcm", objective={"align_steps": 12}), None).schedule(0, 12)
    with pytest.raises(UserError, match="`objective` trade_off"):
        make_objective(Recipe(loss="adcm", objective={"trade_off": 0.0}), None)


@pytest.mark.slow
def test_a_run_logs_and_keeps_its_levels_and_resumes_bit_for_bit(flags, tmp_path):
    flags = [flag for flag in flags if not flag.startswith(("s0=", "s1="))]
    flags.remove("--objective")
    common = [*flags, "--loss", "adcm", "--objective", "align_steps=3", "rebuilds=3", "trade_off=0.3", "--dropout", 0.3,
              "--max_train_steps", 12]  # fmt: skip
    assert run(*common, "--output_dir", tmp_path / "whole") == 0
    counts = {entry["step"]: entry.get("num_levels") for entry in read_log(tmp_path / "whole" / "log.jsonl")}
    assert counts[2] is None
    assert len({counts[4], counts[7], counts[10]}) > 1
    newest = list_checkpoints(tmp_path / "whole")[0]
    assert len(load(newest).state["objective_memory"]["sigmas"]) == counts[12]
    assert run(*common, "--output_dir", tmp_path / "parts", "--max_train_minutes", 1e-6) == 3
    for _ in range(2):
        assert run(*common, "--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "latest") in (0, 3)
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "parts")
    assert final_tensors(tmp_path / "whole")
