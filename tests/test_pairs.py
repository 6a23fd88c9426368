"""Pairs: what the network sees of an image and its condition, and runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_unet, pictures
from PIL import Image
from short_run import assert_bitwise_equal, assert_refused, run, two_processes

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.data.batches import Batches
from diffusers_ict.data.draw import Draw
from diffusers_ict.formulas.preconditioning import Condition, ConsistencyFunction, c_noise
from diffusers_ict.hub.check_repository import Severity, check_repository
from diffusers_ict.objectives.adcm import ADCM
from diffusers_ict.objectives.base import consistency_pair
from diffusers_ict.objectives.ct import CT
from diffusers_ict.objectives.ect import ECT
from diffusers_ict.objectives.ict import ICT
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.train import train


class Recorder(torch.nn.Module):
    """A network that keeps what it is called with, and answers with a part of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.calls = channels, []
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, timesteps, class_labels=None, return_dict=True):
        self.calls.append((x, timesteps, class_labels))
        return (self.weight * x[:, : self.channels],)


class Bent(Recorder):
    """A network whose output is no line in the noisy image, and depends on the condition."""

    def forward(self, x, timesteps, class_labels=None, return_dict=True):
        return (torch.tanh(x[:, : self.channels] + x[:, self.channels :]),)


# ---------------------------------------------------------------------------------------- what the network sees


@pytest.mark.parametrize("objective", [ICT(), ECT(), CT(), ADCM()], ids=lambda objective: objective.method)
def test_the_network_sees_the_scaled_noisy_image_and_the_condition_as_it_is(objective):
    x, noise, image = torch.rand(5, 3, 4, 4) * 2 - 1, torch.randn(5, 3, 4, 4), torch.rand(5, 2, 4, 4) * 2 - 1
    sigma, sigma_next = objective.sample_pair(torch.rand(5, dtype=torch.float64), 0, 100)
    net, labels = Recorder(3), torch.arange(5)
    f = ConsistencyFunction(net)
    pair = consistency_pair(f, x, noise, sigma, sigma_next, Condition(labels, image))
    assert len(net.calls) == 2
    for (seen, timesteps, told), level in zip(net.calls, (sigma_next, sigma)):
        scale = (level.float() ** 2 + 0.25).sqrt()[:, None, None, None]
        noisy = x + level.float()[:, None, None, None] * noise
        assert torch.equal(seen, torch.cat([noisy / scale, image], 1))
        assert torch.equal(timesteps, c_noise(level))
        assert torch.equal(told, labels)
    assert pair.student.shape == pair.target.shape == x.shape
    assert objective.loss(pair).shape == (5,)


def test_noise_is_drawn_for_the_image_alone_and_flips_mirror_both():
    images, grey = pictures()
    x, condition = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(grey)[:, None]
    draw = Draw(3, 7, 8, "cpu")
    sigmas = torch.full((8,), 0.1), torch.full((8,), 0.2)
    (batch,) = Batches(iter([{"x": x[:8], "condition": condition[:8]}]), 8, 8, random_flip=True).step(draw, *sigmas)
    (alone,) = Batches(iter([{"x": x[:8]}]), 8, 8, random_flip=True).step(draw, *sigmas)
    assert batch.noise.shape == batch.x.shape == (8, 3, 8, 8)
    assert torch.equal(batch.noise, alone.noise)
    assert torch.equal(batch.x, alone.x)
    flips = draw.flips()
    assert 0 < flips.sum() < 8
    for row, flip in enumerate(flips):
        for seen, stored in ((batch.x, x), (batch.condition, condition)):
            assert torch.equal(seen[row], (stored[row].flip(-1) if flip else stored[row]).float() / 127.5 - 1)
    told = batch.told
    assert isinstance(told, Condition)
    assert told.labels is None
    assert told.image is batch.condition
    assert alone.told is None


def test_levels_that_a_network_chooses_are_chosen_with_the_conditions():
    objective, net = ADCM(), Bent(3)
    x, image = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 8, 8)
    objective.rebuild(ConsistencyFunction(net), x, torch.randn(2, 3, 8, 8), Condition(None, image), lambda sums: sums)
    with_image = objective.memory.sigmas
    objective.rebuild(ConsistencyFunction(net), x, torch.randn(2, 3, 8, 8), Condition(None, -image), lambda sums: sums)
    assert with_image is not None
    assert with_image != objective.memory.sigmas


# ------------------------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("loss", ["ict", pytest.param("ct", marks=pytest.mark.slow)])
def test_a_resumed_run_and_micro_batches_are_bitwise_and_nearly_the_uninterrupted_one(tmp_path, pair_flags, loss):
    flags = [*pair_flags, "--loss", loss, "--dropout", "0", "--objective", "s0=2", "s1=16", "--logging_steps", "1"]
    assert run(*flags, "--output_dir", tmp_path / "whole") == 0
    assert run(*flags, "--output_dir", tmp_path / "parts") == 0
    for done in (tmp_path / "parts").glob("checkpoint-1*"):
        shutil.rmtree(done)
    assert run(*flags, "--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "parts")
    once = ["--train_batch_size", "8", "--gradient_accumulation_steps", "1"]
    assert run(*flags, *once, "--output_dir", tmp_path / "once") == 0
    assert losses_of(tmp_path / "whole") == pytest.approx(losses_of(tmp_path / "once"), rel=1e-3)
    whole = ConsistencyPipeline.from_pretrained(tmp_path / "whole")
    assert (whole.unet.config.in_channels, whole.unet.config.out_channels, whole.condition_channels) == (4, 3, 1)


@pytest.mark.slow
def test_two_processes_see_the_same_pairs_as_one(tmp_path, pair_flags):
    flags = [*pair_flags, "--dropout", "0", "--objective", "s0=2", "s1=16", "--logging_steps", "1"]
    assert run(*flags, "--output_dir", tmp_path / "one") == 0
    done = two_processes("train_ict.py", *flags, "--gradient_accumulation_steps", 1, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    losses = [losses_of(tmp_path / name) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def losses_of(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_shows_conditions_above_real_images_and_its_card_says_how_to_give_them(tmp_path, pair_flags):
    flags = [*pair_flags, "--objective", "s0=2", "s1=4", "--max_train_steps", "2"]
    assert run(*flags, "--output_dir", tmp_path / "out") == 0
    without = [flag for flag in flags if flag not in ("--conditioning_image_column", "grey")]
    assert run(*without, "--output_dir", tmp_path / "plain") == 0
    heights = {}
    for name in ("out", "plain"):
        with Image.open(tmp_path / name / "samples" / "step-0000002.png") as grid:
            heights[name] = grid.height
    assert heights["out"] > heights["plain"] * 1.25  # four rows instead of three
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline(image=image, num_inference_steps=2)" in card
    assert "pipeline_tag: image-to-image" in card
    assert "image=" not in (tmp_path / "plain" / "README.md").read_text()
    findings = check_repository(str(tmp_path / "out"))
    assert [finding.topic for finding in findings if finding.severity is Severity.ERROR] == []


@pytest.mark.slow
def test_a_run_learns_to_invert_images(tmp_path, pair_config):
    """The condition says all: the samples are the images themselves, which noise alone would not tell."""
    images, _ = pictures(512)
    np.savez(tmp_path / "inverse.npz", image=images, inverse=255 - images)
    recipe = Recipe(
        dataset_name=str(tmp_path / "inverse.npz"), image_column="image", conditioning_image_column="inverse",
        model_config_name_or_path=str(pair_config), loss="ict", objective={"s0": 4, "s1": 16}, dropout=0.0,
        max_train_steps=600, train_batch_size=32, learning_rate=2e-3, lr_scheduler="cosine", ema_decays=[0.98],
        output_dir=str(tmp_path / "out"), checkpointing_steps=1000, validation_steps=1000,
    )  # fmt: skip
    assert train(recipe) is None
    pipeline = ConsistencyPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    unseen, _ = pictures(600)
    unseen = unseen[512:]
    given = torch.from_numpy(255 - unseen).permute(0, 3, 1, 2)
    drawn = pipeline(image=given, generator=torch.Generator().manual_seed(0), output_type="np").images
    error = np.sqrt(np.mean((drawn - unseen / 255) ** 2))
    ignorant = np.sqrt(np.mean((images.mean((0, 1, 2)) / 255 - unseen / 255) ** 2))
    assert error < ignorant / 2, (error, ignorant)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--loss", "act"], "no discriminator sees, got act"),
        (["--reference_batch_size", "8"], "`reference_batch_size` averages targets".replace("`", "")),
        (["--streaming"], "leave --streaming out"),
    ],
)
def test_what_does_not_fit_pairs_is_refused(tmp_path, pair_flags, capsys, more, message):
    message = message.replace("reference_batch_size", "--reference_batch_size")
    assert_refused(tmp_path, capsys, message, *pair_flags, *more, "--output_dir", tmp_path / "out")


def test_a_start_without_conditions_is_refused(tmp_path, pair_flags, capsys):
    made = make_unet(in_channels=3, out_channels=3)
    ConsistencyPipeline(made, ICTScheduler()).save_pretrained(tmp_path / "start")
    at = pair_flags.index("--model_config_name_or_path")
    flags = [*pair_flags[:at], *pair_flags[at + 2 :], "--pretrained_model_name_or_path", tmp_path / "start"]
    message = "their conditions 1, so the UNet needs 4 in and 3 out, and it has 3 in and 3 out"
    assert_refused(tmp_path, capsys, message, *flags, "--output_dir", tmp_path / "out")
