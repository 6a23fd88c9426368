"""The relativistic discriminator: its losses, the estimate of its penalties, and the balance of two gradients."""

import math

import pytest
import torch
from accelerate import Accelerator
from conftest import make_unet
from short_run import assert_bitwise_equal, final_tensors, run
from torch import nn

from diffusers_ict import ConsistencyFunction, consistency_pair
from diffusers_ict.data.batches import Batch
from diffusers_ict.discriminator import ConsistencyDiscriminator
from diffusers_ict.objectives.relativistic import Relativistic, gradient_penalty, relativistic_loss
from diffusers_ict.training.log import read_log
from diffusers_ict.training.relativistic import RelativisticAdversary

SMALL = {"sample_size": 8, "in_channels": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
         "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}  # fmt: skip


def make_adversary(**settings) -> RelativisticAdversary:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        discriminator = ConsistencyDiscriminator(**SMALL, normalized=False)
        nn.init.normal_(discriminator.logit.weight)
    return RelativisticAdversary(Accelerator(), Relativistic.from_settings(**settings), discriminator)


def make_pair_and_batch(unet):
    x, sigma = torch.randn(6, 1, 8, 8), torch.full((6,), 1.0)
    noise = torch.randn_like(x)
    pair = consistency_pair(ConsistencyFunction(unet), x, noise, sigma, sigma * 1.25)
    return pair, Batch(x, None, noise, sigma, sigma * 1.25, None, 0)


def test_the_loss_compares_a_logit_with_its_partner():
    loss = relativistic_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(loss, torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.exp(2))]))


def test_the_penalty_is_the_squared_gradient_on_average_over_directions():
    images = torch.randn(3, 5, dtype=torch.float64)
    weight = torch.randn(5, dtype=torch.float64)
    gamma, epsilon = 4.0, 1e-6

    def logits(x):
        return (x @ weight).sin() + x.square().sum(-1)

    # Directions sqrt(5) e_i have the second moments of a normal distribution.
    directions = math.sqrt(5) * torch.eye(5, dtype=torch.float64)
    estimates = [gradient_penalty(logits(images + epsilon * n), logits(images), gamma, epsilon) for n in directions]
    gradient = weight * (images @ weight).cos()[:, None] + 2 * images
    torch.testing.assert_close(torch.stack(estimates).mean(0), gamma / 2 * gradient.square().sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("share", [0.3, 2.0])
def test_the_adversarial_gradient_has_its_share_of_the_norm_at_the_output(share):
    adversary = make_adversary(share=share)
    pair, batch = make_pair_and_batch(make_unet())
    with adversary.judging():
        first = adversary.generator_loss(pair, batch)
    consistency = adversary.objective.consistency.loss(pair)
    torch.testing.assert_close(first, consistency)  # nothing is known of the gradients yet
    (of_consistency,) = torch.autograd.grad(consistency.sum(), pair.student, retain_graph=True)
    adversary.memory.end_step(adversary.accelerator)
    with adversary.judging():
        loss = adversary.generator_loss(pair, batch)
    (gradient,) = torch.autograd.grad(loss.sum(), pair.student)
    ratio = (gradient - of_consistency).norm() / of_consistency.norm()
    assert ratio.item() == pytest.approx(share, rel=1e-3)


def test_the_balance_of_two_processes_is_that_of_all_their_images():
    whole, half = make_adversary().memory, make_adversary().memory
    ones, twos = torch.ones(4, 3), 2 * torch.ones(4, 3)
    whole.add(ones, twos)
    for part in (slice(2), slice(2, 4)):
        half.add(ones[part], twos[part])
    torch.testing.assert_close(whole.sums, torch.tensor([12.0, 48.0]))
    torch.testing.assert_close(whole.sums, half.sums)


def test_nothing_in_the_discriminator_is_normalised_and_its_blocks_begin_as_the_identity():
    discriminator = make_adversary().model
    assert not [module for module in discriminator.modules() if isinstance(module, nn.GroupNorm)]
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    assert torch.isfinite(discriminator(x, sigma)).all()
    resnet = discriminator.down_blocks[0].resnets[0]
    hidden = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(resnet(hidden, torch.randn(2, 64)), hidden)


def test_neither_network_gets_a_gradient_from_the_others_step():
    unet, adversary = make_unet(), make_adversary()
    pair, batch = make_pair_and_batch(unet)
    with adversary.judging():
        adversary.generator_loss(pair, batch).mean().backward()
    assert not any(p.grad is not None and p.grad.any() for p in adversary.model.parameters())
    assert any(p.grad.abs().max() > 0 for p in unet.parameters())
    unet.zero_grad()
    before = [p.clone() for p in adversary.model.parameters()]
    figures = adversary.update(ConsistencyFunction(unet), [batch], [batch], step=0, parts=1, images=6)
    assert {"discriminator_loss", "discriminator_accuracy", "r1", "r2", "adversarial_factor"} == figures.keys()
    assert all(p.grad is None for p in unet.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, adversary.model.parameters(), strict=True))


@pytest.mark.slow
def test_the_discriminator_begins_late_and_a_run_resumes_bit_for_bit(flags, tmp_path):
    common = [*flags, "--loss", "relativistic", "--objective", "consistency=ict", "start=0.5", "--dropout", 0.3,
              "--max_train_steps", 8, "--logging_steps", 1]  # fmt: skip
    assert run(*common, "--output_dir", tmp_path / "whole") == 0
    logged = [entry["step"] for entry in read_log(tmp_path / "whole" / "log.jsonl") if "adversarial_factor" in entry]
    assert logged == [5, 6, 7, 8]
    for stops, name in ((1, "before"), (6, "after")):
        folder = tmp_path / name
        saving = ["--checkpointing_steps", stops, "--output_dir", folder]
        assert run(*common, *saving, "--checkpoints_total_limit", 20) == 0
        assert_bitwise_equal(tmp_path / "whole", folder)
        for newer in folder.glob("checkpoint-*"):
            if int(newer.name.rpartition("-")[2]) > stops:
                for file in newer.iterdir():
                    file.unlink()
                newer.rmdir()
        assert run(*common, *saving, "--resume_from_checkpoint", "latest") == 0
        assert_bitwise_equal(tmp_path / "whole", folder)
    assert final_tensors(tmp_path / "whole")
