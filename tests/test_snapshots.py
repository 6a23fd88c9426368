"""Averages of any length, made after the run of the snapshots that it kept."""

import shutil

import pytest
import torch
from conftest import files_of
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from short_run import ICT, run

from diffusers_ict.commands import ema
from diffusers_ict.formulas.power_ema import power_decay, power_exponent
from diffusers_ict.training.ema import Average
from diffusers_ict.training.snapshots import list_snapshots

STD = 0.075


@pytest.fixture
def made(flags, tmp_path, monkeypatch):
    """A run with snapshots, and the average of STD that was tracked while it trained."""
    update, tracked = Average.update, {}

    def tracking(self):
        if self.decay_at(0) == 0 and self.decay_at(1) == power_decay(2, power_exponent(0.05)):
            share = 1 - power_decay(self.steps + 1, power_exponent(STD))
            for (name, _), weight in zip(self.module.named_parameters(), self._weights):
                average = tracked.setdefault(name, torch.zeros(weight.shape, dtype=torch.float64))
                average.lerp_(weight.detach().double(), share)
        update(self)

    monkeypatch.setattr(Average, "update", tracking)
    own = [*ICT, *flags, "--max_train_steps", 40, "--ema_snapshot_steps", 2, "--learning_rate", 1e-2]
    assert run(*own, "--output_dir", tmp_path / "out") == 0
    monkeypatch.undo()
    return own, tmp_path / "out", tracked


def test_an_average_of_another_length_is_that_which_was_tracked(made, tmp_path, capsys):
    _, out, tracked = made
    assert list(list_snapshots(out)) == list(range(2, 41, 2))
    assert ema.main([str(out), "--std", str(STD), "0.1"]) == 0
    assert "std0075: its weights of the steps are those of the exact average within 0." in capsys.readouterr().out
    average = UNet2DModel.from_pretrained(out, subfolder="unet", variant="std0075").state_dict()
    distance = sum((average[name].double() - exact).square().sum() for name, exact in tracked.items()).sqrt()
    norm = sum(exact.square().sum() for exact in tracked.values()).sqrt()
    assert distance < 0.005 * norm
    final = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    moved = sum((average[name] - final[name]).square().sum() for name in average).sqrt()
    assert moved > 10 * distance, "the averages differ by less than the error"
    assert 'variant="std0075"' in (out / "README.md").read_text()
    check_refusals(out, tmp_path, capsys)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_same_snapshots(made, tmp_path):
    own, out, _ = made
    resumed = shutil.copytree(out, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoint-40")
    (resumed / "averages" / "step-0000090.safetensors").write_bytes(b"of a longer run")
    assert run(*own, "--output_dir", resumed, "--resume_from_checkpoint", "latest") == 0
    assert list(list_snapshots(resumed)) == list(list_snapshots(out))
    for there, here in zip(list_snapshots(out).values(), list_snapshots(resumed).values()):
        assert there.read_bytes() == here.read_bytes()


def check_refusals(out, tmp_path, capsys):
    """What cannot be made is told, and nothing is written."""
    before = files_of(out)
    for words, message in (
        ([out, "--std", 0.5], "--std: the relative standard deviation of an average must be between 0 and 0.289"),
        ([out, "--std", 0.1, "--step", 7], "--step must be that of a snapshot (2, 4,"),
        ([tmp_path, "--std", 0.1], "must be the output folder of a finished run"),
    ):
        assert ema.main([str(word) for word in words]) == 2
        assert message in capsys.readouterr().err
    list_snapshots(out)[4].write_bytes(b"torn")
    assert ema.main([str(out), "--std", "0.1"]) == 2
    assert "step-0000004.safetensors cannot be read" in capsys.readouterr().err
    list_snapshots(out)[4].unlink()
    check_damage(out, capsys)
    shutil.rmtree(out / "averages")
    assert ema.main([str(out), "--std", "0.1"]) == 2
    assert "has no snapshots of averages: train with --ema_snapshot_steps" in capsys.readouterr().err
    left = {name: content for name, content in before.items() if not name.startswith("averages/")}
    assert files_of(out) == left


def check_damage(out, capsys):
    """Damaged snapshots are refused, and nothing is written."""
    for snapshot, damage, message in (
        (list_snapshots(out)[6], flipped, "is not as it was written"),
        (list_snapshots(out)[6], filled, "is not as it was written"),
        (list_snapshots(out)[6], without_hash, "holds values that are not numbers"),
    ):
        whole = snapshot.read_bytes()
        damage(snapshot)
        before = files_of(out)
        assert ema.main([str(out), "--std", "0.1"]) == 2
        assert message in capsys.readouterr().err
        assert files_of(out) == before
        snapshot.write_bytes(whole)


def flipped(path):
    """One bit of one weight."""
    content = bytearray(path.read_bytes())
    content[-100] ^= 64
    path.write_bytes(content)


def filled(path):
    """2,000 bytes of 0xFF, which are no numbers in float16."""
    content = path.read_bytes()
    path.write_bytes(content[:-2000] + b"\xff" * 2000)


def without_hash(path):
    """As older versions wrote it, with the same damage."""
    save_file(load_file(path), path)
    filled(path)
