"""ECT's levels, stages and alignment, against numbers by hand, and whole runs of it."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from short_run import ACT, ECT, final_tensors, run

from diffusers_ict import ECT as ECTObjective
from diffusers_ict import Pair, consistency_pair
from diffusers_ict.errors import UserError
from diffusers_ict.formulas.preconditioning import boundary
from diffusers_ict.objectives.base import Objective
from diffusers_ict.training import train
from diffusers_ict.training.estimate import stages
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.start import check_curriculum, make_objective

LN_T = NormalDist(-1.1, 2.0)


def uniform_of(*levels: float) -> torch.Tensor:
    """The uniform numbers that draw these levels t."""
    return torch.tensor([LN_T.cdf(math.log(t)) for t in levels], dtype=torch.float64)


def test_the_stages_of_q_2_and_the_one_of_q_256_have_the_ratios_computed_by_hand():
    # At t = ln 3, sigmoid(-t) = 1/4 and n(t) = 1 + 8/4 = 3.
    by_hand = [0, 0, 0.25, 0.625, 0.8125, 0.90625, 0.953125, 0.9765625, 0.98828125]  # 1 - 3 / 2^(stage + 1), or 0
    objective = ECTObjective(align_steps=10, stage_steps=10)
    for number, ratio in enumerate(by_hand):
        (r,), (t,) = objective.sample_pair(uniform_of(math.log(3)), 10 * number, 90)
        assert t.item() == pytest.approx(math.log(3), rel=1e-9)
        assert r.item() == pytest.approx(max(ratio * math.log(3), 0.002), rel=1e-9)
    assert ECTObjective(256).ratio(torch.tensor([0.0, 80.0]), 0).tolist() == pytest.approx([0.98046875, 0.99609375])


def test_ln_t_is_normal_but_for_the_draws_beyond_the_ends():
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    _, t = ECTObjective().sample_pair(u, 0, 8)
    for share in (0.02, 0.1, 0.5, 0.9, 0.99):
        assert t.quantile(share).log().item() == pytest.approx(LN_T.inv_cdf(share), abs=1e-4)
    assert (t == 0.004).double().mean().item() == pytest.approx(LN_T.cdf(math.log(0.004)), abs=2e-6)
    assert (t == 80).double().mean().item() == pytest.approx(1 - LN_T.cdf(math.log(80)), abs=2e-6)
    narrow = ECTObjective(p_mean=-0.8, p_std=1.6).sample_pair(u, 0, 8)[1].log()
    assert narrow.median().item() == pytest.approx(-0.8, abs=1e-4)
    assert narrow.std().item() == pytest.approx(1.6, rel=5e-3)


@pytest.mark.parametrize("q", [1.1, 2, 256])
def test_the_levels_of_every_number_and_stage_are_in_range_and_apart(q):
    u = torch.cat([torch.tensor([0.0, 2**-53, 1 - 2**-53]), torch.rand(1000, dtype=torch.float64)])
    objective = ECTObjective(q, stage_steps=1, align_steps=1)
    for step in (0, 1, 2, 5, 20, 10**9):
        r, t = objective.sample_pair(u, step, 10**9 + 1)
        assert torch.isfinite(t).all()
        assert ((r >= 0.002) & (r < t) & (t >= 0.004) & (t <= 80)).all()
        assert (r <= 0.9991 * t).all()
        if step == 0:
            assert (r == 0.002).all()


def test_a_sample_has_its_levels_in_any_part_of_a_batch():
    u, objective = torch.rand(37, dtype=torch.float64), ECTObjective(256)
    whole = objective.sample_pair(u, 0, 8)
    for size in (1, 5, 16):
        parts = zip(*(objective.sample_pair(part, 0, 8) for part in u.split(size)), strict=True)
        assert all(torch.equal(torch.cat(part), full) for part, full in zip(parts, whole, strict=True))


def test_stages_count_steps_after_the_alignment():
    fixed, equal = ECTObjective(stage_steps=4, align_steps=3), ECTObjective(stages=3, align_steps=2)
    assert [fixed.stage(k, 13) for k in range(13)] == [-1] * 3 + [0] * 4 + [1] * 4 + [2] * 2
    assert [equal.stage(k, 9) for k in range(9)] == [-1, -1, 0, 0, 0, 1, 1, 2, 2]
    assert {ECTObjective(stages=1).stage(k, 100) for k in range(100)} == {0}
    assert [fixed.denoises(k, 13) for k in (0, 2, 3, 12)] == [True, True, False, False]
    assert fixed.schedule(2, 13) == {"stage": -1, "ratio": 0}
    assert fixed.schedule(7, 13) == {"stage": 1, "ratio": 0.75}


def test_stages_end_where_all_ratios_are_at_their_largest():
    # 5 / 2^(stage + 1) falls to 0.001 between 2^12 = 4096 and 2^13 = 8192.
    objective = ECTObjective(stage_steps=1)
    assert list(dict(stages(objective, 10**12))) == list(range(13))
    assert objective.ratio(torch.tensor(0.0), 11) < 0.999
    assert objective.ratio(torch.tensor(0.0), 12).item() == pytest.approx(0.999)


@pytest.mark.parametrize("stage", [-1, 0, 3, 7])
def test_the_mean_weight_is_the_integral_over_the_lognormal(stage):
    z = np.linspace(-8, 8, 400_001)
    t = np.exp(-1.1 + 2 * z).clip(0.004, 80)
    ratio = 1 - (1 + 8 / (1 + np.exp(t))) / 2 ** (stage + 1)
    weight = 1 / (t - np.maximum(t * np.maximum(ratio, 0), 0.002))
    exact = (weight * np.exp(-(z**2) / 2)).sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    objective = ECTObjective(stage_steps=1, align_steps=1)
    assert objective.mean_weight(stage + 1, 20) == pytest.approx(exact, rel=2e-3)


def test_the_loss_is_the_norm_of_an_image_over_the_gap_and_has_a_gradient_where_it_is_zero():
    student = torch.tensor([[3.0, 4.0], [1.0, 1.0]]).view(2, 1, 1, 2).requires_grad_()
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    pair = Pair(student, target, torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.75]))
    loss = ECTObjective().loss(pair)
    assert loss.tolist() == [20.0, 0.0]
    loss.sum().backward()
    torch.testing.assert_close(student.grad.flatten(1), torch.tensor([[2.4, 3.2], [0.0, 0.0]]))
    assert ECTObjective(huber_c=12.0).distance(pair).tolist() == [1.0, 0.0], "sqrt(5^2 + 12^2) - 12"


def test_the_target_of_an_alignment_is_the_image_with_the_least_noise():
    x, z = torch.randn(6, 1, 8, 8), torch.randn(6, 1, 8, 8)
    objective = ECTObjective(align_steps=1)
    sigma, sigma_next = objective.sample_pair(torch.rand(6, dtype=torch.float64), 0, 8)
    pair = consistency_pair(lambda x, sigma, labels: 0 * x, x, z, sigma, sigma_next, teacher=boundary)
    torch.testing.assert_close(pair.target, x + 0.002 * z)


def objective_of(loss: str, **settings) -> Objective:
    return make_objective(Recipe(loss=loss, objective=settings), None)


def test_a_recipe_makes_the_objective_whose_alignment_must_end_before_the_run():
    assert objective_of("ect") == ECTObjective()
    assert objective_of("act", consistency="ect", huber_c=0.03).consistency == ECTObjective(huber_c=0.03)
    settings = {"q": 256, "stage_steps": 100, "align_steps": 5, "p_mean": -0.8, "p_std": 1.6}
    assert objective_of("ect", **settings) == ECTObjective(256.0, 100, 8, 5, -0.8, 1.6, 0.0)
    assert [objective_of("ect").stage(k, 80) for k in range(0, 80, 10)] == list(range(8))
    check_curriculum(ECTObjective(align_steps=11), 12)
    with pytest.raises(UserError, match=r"`max_train_steps`: an alignment of 12 steps needs .* more steps, got 12"):
        check_curriculum(ECTObjective(align_steps=12), 12)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (
            "ict",
            {"align_steps": 5},
            "of ICT can have s0, s1, p_mean, p_std, huber_c, metric, cauchy_c, got align_steps",
        ),
        (
            "act",
            {"align_steps": 5},
            r"\(ACT\), s0, s1, mu0, metric, lpips_weights, lpips_\w+, lpips_\w+, lpips_\w+, got align_steps",
        ),
        ("ect", {"align_steps": -1}, "`align_steps` must be at least 0, got -1"),
        ("ect", {"align_steps": 1.5}, "`align_steps` must be an integer, got 1.5"),
        ("ect", {"q": 1.0}, "`objective` q must be at least 1.1"),
        ("act", {"consistency": "act"}, "`consistency` must be a loss without a discriminator"),
        ("act", {"augment": "yes"}, "`objective` augment must be true or false"),
        ("ct", {"metric": "l1"}, "`metric` must be l2 or lpips, got l1"),
    ],
)
def test_settings_that_cannot_be_are_refused(loss, settings, message):
    with pytest.raises(UserError, match=message):
        objective_of(loss, **settings)


ACT_ON_ECT = [*ACT, "consistency=ect", *ECT[5:]]


@pytest.mark.parametrize(
    "loss", [pytest.param(ECT, id="ect"), pytest.param(ACT_ON_ECT, id="act", marks=pytest.mark.slow)]
)
def test_the_teacher_is_left_out_of_the_alignment_and_nothing_changes(loss, flags, tmp_path, monkeypatch, capsys):
    """Bit for bit, though the masks of dropout are drawn in the same order, and ACT's discriminator draws some too."""
    own, passes = [*loss, *flags, "--max_train_steps", 12, "--checkpointing_steps", 12], []

    def counting(x, sigma, labels):
        passes.append(len(x))
        return boundary(x, sigma, labels)

    monkeypatch.setattr(train, "boundary", counting)
    assert run(*own, "--output_dir", tmp_path / "left_out") == 0
    assert len(passes) == 2 * 7, "micro batches of the alignment"
    out = capsys.readouterr().out
    assert "stage       4 stages: -1 from step 0, 0 from step 7, 1 from step 9, 2 from step 11" in out
    assert "ratio       4 stages: 0 from step 0, 0.5 from step 7, 0.75 from step 9, 0.875 from step 11" in out
    assert [entry["stage"] for entry in read_log(tmp_path / "left_out" / "log.jsonl")] == [-1] * 7 + [0, 0, 1, 1, 2]

    monkeypatch.setattr(ECTObjective, "denoises", lambda self, step, total_steps: False)
    assert run(*own, "--output_dir", tmp_path / "asked") == 0
    assert len(passes) == 2 * 7
    left_out, asked = final_tensors(tmp_path / "left_out"), final_tensors(tmp_path / "asked")
    assert left_out.keys() == asked.keys()
    assert all(torch.equal(value, asked[name]) for name, value in left_out.items())
    card = (tmp_path / "left_out" / "README.md").read_text()
    assert "Consistency Models Made Easy" in card


def test_adaptive_weights_divide_by_the_distance_of_the_target_from_the_image():
    student, target, x = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 1.0), torch.zeros(2, 1, 2, 2)
    x[1] = 1
    pair = Pair(student, target, torch.tensor([1.0, 0.002]), torch.tensor([1.5, 0.502]), x)
    objective = ECTObjective(adaptive_weight=True)
    # d(student, target) = |2 (1, 1, 1, 1)| = 4 and d(target, x) = 2; the second pair has r = sigma_min, t - r = 1/2.
    assert objective.loss(pair).tolist() == pytest.approx([4 / (2 + 1e-3), 8])
    assert objective.mean_weight(0, 100) == 1
    assert ECTObjective().loss(pair).tolist() == pytest.approx([8, 8])
