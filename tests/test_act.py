import math

import pytest
import torch
from conftest import make_unet, write_npz
from safetensors.torch import load_file

from diffusers_ict import CT, ICT, ConsistencyFunction, ConsistencyPipeline, c_noise, consistency_pair, karras_sigmas
from diffusers_ict.discriminator import ConsistencyDiscriminator
from diffusers_ict.objectives.act import (
    ACT,
    AdaptiveStrength,
    AdversarialWeight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    weighted_lerp,
)
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.train import train

SMALL = {"sample_size": 8, "in_channels": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
         "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}  # fmt: skip


def make_discriminator(**changes) -> ConsistencyDiscriminator:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return ConsistencyDiscriminator(**{**SMALL, **changes})


def make_pair(unet):
    x, sigma = torch.randn(6, 1, 8, 8), torch.full((6,), 1.0)
    return consistency_pair(ConsistencyFunction(unet), x, torch.randn_like(x), sigma, sigma * 1.25)


@pytest.mark.parametrize(("w", "w_mid"), [(0.6, 0.2), (0.3, 0.3), (1.0, 0.1)])
def test_weight_is_a_power_of_the_place_in_the_grid_that_is_w_mid_in_the_middle_and_w_at_the_end(w, w_mid):
    weight = AdversarialWeight(w, w_mid)(karras_sigmas(151))
    expected = [w * (i / 150) ** (math.log(w_mid / w) / math.log(0.5)) for i in range(151)]
    torch.testing.assert_close(weight, torch.tensor(expected))
    at_zero = w if w == w_mid else 0.0  # with w_mid = w it is a constant
    torch.testing.assert_close(weight[[0, 75, 150]], torch.tensor([at_zero, w_mid, w]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (lambda w=w: AdversarialWeight(*w), "0 < w_mid <= w <= 1")
            for w in [(1.1, 0.5), (-0.1, -0.1), (0.3, 0.4), (0.3, 0.0)]
        ),
        *((lambda s=s: AdaptiveStrength(*s), "must be positive") for s in [(0.0, 100), (-1.0, 100), (1.0, 0)]),
        (lambda: ACT(r1_interval=True), "`r1_interval` must be a number, got True"),
    ],
)
def test_constants_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_losses_equal_one_liners():
    fake, real = torch.randn(8), torch.randn(8)
    torch.testing.assert_close(generator_loss(fake), -torch.log(torch.sigmoid(fake)))
    torch.testing.assert_close(
        discriminator_loss(fake, real), -torch.log(1 - torch.sigmoid(fake)) - torch.log(torch.sigmoid(real))
    )
    a, b = torch.rand(8), torch.rand(8)
    torch.testing.assert_close(
        discriminator_loss(fake, real, a, b), a * torch.log1p(fake.exp()) + b * torch.log1p((-real).exp())
    )


def test_generator_losses_are_the_published_lerp_of_the_unweighted_distance():
    pair, adversarial, weight = make_pair(make_unet()), torch.rand(6), torch.rand(6)
    expected = (1 - weight) * ((pair.student - pair.target) ** 2).mean((1, 2, 3)) + weight * adversarial
    torch.testing.assert_close(weighted_lerp(CT(), pair, adversarial, weight), expected)
    expected = 4.0 * ((1 - weight) * ICT().distance(pair) + weight * adversarial)
    torch.testing.assert_close(weighted_lerp(ICT(), pair, adversarial, weight), expected)


def test_r1_of_a_linear_discriminator_equals_its_closed_form():
    a = torch.randn(1, 1, 8, 8, dtype=torch.float64)

    def linear(x, timestep, labels):
        return (a * x).sum((1, 2, 3)) * 3.0

    penalty = r1_penalty(linear, torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.ones(5), gamma=10.0)
    torch.testing.assert_close(penalty, torch.full((5,), (10 / 2 * 9 * a.square().sum()).item()).to(penalty))


def test_r1_gradient_equals_finite_differences():
    discriminator = make_discriminator().double()
    x, sigma = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def penalty(weight):
        def logits(*inputs):
            return torch.func.functional_call(discriminator, {"logit.weight": weight}, inputs)

        return r1_penalty(logits, x, sigma, gamma=10.0).sum()

    assert torch.autograd.gradcheck(penalty, discriminator.logit.weight)


def test_neither_networks_step_gives_the_other_a_gradient(tmp_path):
    from accelerate import Accelerator

    from diffusers_ict.data.batches import Batch
    from diffusers_ict.training.act import ACTAdversary

    unet = make_unet()
    adversary = ACTAdversary(Accelerator(), ACT(), make_discriminator())
    pair = make_pair(unet)
    x = torch.randn(6, 1, 8, 8)
    batch = Batch(x, None, torch.randn_like(x), pair.sigma, pair.sigma_next, None, 0)

    with adversary.judging():
        adversary.generator_loss(pair, batch).mean().backward()
    assert not any(p.grad.any() for p in adversary.model.parameters())
    assert any(p.grad.abs().max() > 0 for p in unet.parameters())

    unet.zero_grad()
    losses, figures = adversary.losses(ConsistencyFunction(unet), batch, batch)
    (losses + adversary.penalty(batch)).mean().backward()
    assert losses.shape == (6,)
    assert 0 <= figures["discriminator_accuracy"] <= 1
    assert -1 <= figures["discriminator_sign"] <= 1
    assert all(p.grad is None for p in unet.parameters())
    assert any(p.grad.abs().max() > 0 for p in adversary.model.parameters())


def test_strength_rises_above_tau_falls_below_it_and_stays_within_0_and_1():
    strength = AdaptiveStrength(tau=1.0, horizon=3000)
    values = []
    for r1 in [10.0] * 5 + [0.0] * 60:
        strength.update(r1, images_seen=100)
        values.append((strength.r.item(), strength.p.item()))
    assert values[0] == (pytest.approx(0.7), 0.0)  # 0.07 * 10, below tau
    assert values[1] == (pytest.approx(0.93 * 0.7 + 0.7), pytest.approx(1 / 30))
    assert values[4][1] == pytest.approx(4 / 30)
    # r falls from 3.04 by 7 % an update: it stays above 1 for 15 more
    assert max(p for _, p in values) == pytest.approx(19 / 30)
    assert values[-1][1] == 0.0
    for _ in range(40):
        strength.update(1e6, 100)
    assert strength.p == 1.0


def run_act(tmp_path, config, name, objective=(), **own):
    settings = {"dataset_name": str(write_npz(tmp_path / "data.npz")), "model_config_name_or_path": str(config),
                "max_train_steps": 8, "train_batch_size": 8, "loss": "act", "logging_steps": 1,
                "num_validation_images": 2, "validation_steps": 99}  # fmt: skip
    objective = {"augment": True, "r1_interval": 2, "augment_horizon": 1000, **dict(objective)}
    train(Recipe(**{**settings, **own}, objective=objective, output_dir=str(tmp_path / name)))
    return read_log(tmp_path / name / "log.jsonl")


@pytest.mark.slow
def test_the_published_split_moves_the_strength_by_both_networks_batches(tmp_path, config):
    halves = run_act(tmp_path, config, "halves", {"augment_tau": 1e-9}, discriminator_batch_size=4)
    # 8 images of the generator, 4 fakes and 4 images, every second step, over a horizon of 1,000
    assert [entry["augment_p"] for entry in halves if "augment_p" in entry] == pytest.approx(
        [0.032, 0.064, 0.096, 0.128]
    )
    whole = run_act(tmp_path, config, "whole", {"augment_tau": 1e-9})
    assert [entry["augment_p"] for entry in whole if "augment_p" in entry][-1] == pytest.approx(4 * 0.048)
    assert halves[0]["loss"] == whole[0]["loss"], "the generator's first batch depends on the discriminator's"


def test_adas_signal_drives_the_strength_too_and_the_teacher_is_exported(tmp_path, config):
    entries = run_act(tmp_path, config, "sign", {"augment_signal": "sign"})
    assert entries[-1]["augment_tau"] == 0.6
    moved = [entry for entry in entries if "augment_r" in entry]
    r = 0.0
    for entry in moved:
        r = 0.93 * r + 0.07 * entry["discriminator_sign"]
        assert entry["augment_r"] == pytest.approx(r)
        assert entry["augment_p"] == 0.0, "a mean sign of 0.6 cannot be reached in eight steps"
    saved = load_file(tmp_path / "sign" / "checkpoint-8" / "teacher.safetensors")
    exported, plain = (
        ConsistencyPipeline.from_pretrained(tmp_path / "sign", variant=variant).unet.state_dict()
        for variant in ("teacher", None)
    )
    assert all(torch.equal(saved[name], exported[name]) for name in saved)
    assert any(not torch.equal(plain[name], exported[name]) for name in plain)


def test_discriminator_gives_one_logit_and_hears_of_time_and_class():
    discriminator = make_discriminator(num_class_embeds=3)
    x, t, labels = torch.randn(4, 1, 8, 8), c_noise(torch.full((4,), 2.0)), torch.tensor([0, 1, 2, 0])
    logits = discriminator(x, t, labels)
    assert logits.shape == (4,)
    assert (discriminator(x, t * 0, labels) != logits).any()
    assert (discriminator(x, t, labels.flip(0)) != logits).any()
    with pytest.raises(ValueError, match="3 classes: class_labels must be given"):
        discriminator(x, t)
    with pytest.raises(ValueError, match="no classes: class_labels must be left out"):
        make_discriminator()(x, t, labels)


def test_discriminator_saves_and_loads_like_any_diffusers_model(tmp_path):
    discriminator = make_discriminator().eval()
    discriminator.save_pretrained(tmp_path)
    weights, again = discriminator.state_dict(), ConsistencyDiscriminator.from_pretrained(tmp_path).state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_an_objective_made_of_act_trains_with_its_discriminator(tmp_path):
    class Own(ACT):
        """A subclass, as users write them."""

    data = write_npz(tmp_path / "data.npz")
    train(Recipe(dataset_name=str(data), train_batch_size=4, max_train_steps=2, output_dir=str(tmp_path / "out")),
          model=make_unet(), objective=Own())  # fmt: skip
    assert "discriminator_loss" in read_log(tmp_path / "out" / "log.jsonl")[-1]
