"""Runs that must be equal: killed and resumed, in parts, in processes, with recomputed activations."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from short_run import ACT, CT, ECT, ICT, LOSSES, final_tensors, run, several_processes, words

from diffusers_ict.training import checkpoint
from diffusers_ict.training.log import read_log


def assert_bitwise_equal(a: Path, b: Path) -> None:
    left, right = final_tensors(a), final_tensors(b)
    assert left.keys() == right.keys()
    assert any("exp_avg_sq" in key for key in left)
    different = [key for key in left if left[key].numpy().tobytes() != right[key].numpy().tobytes()]
    assert not different, different


def kill_at_random_step(flags: list[str], folder: Path, earliest: int, latest: int) -> int:
    """Start the run in a process of its own, SIGKILL it while it trains; the number of steps it had logged."""
    at = random.SystemRandom().randint(earliest, latest)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_scripts" / "train_ict.py"), *words(*flags), "--output_dir", str(folder)],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    log, deadline = folder / "log.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"the run ended by itself: {errors.decode()[-2000:]}"
    return at


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ICT, ECT, CT, ACT], ids=["ict", "ect", "ct", "act"])
def test_killed_and_resumed_a_run_ends_bit_identical(loss, flags, tmp_path):
    assert run(*loss, *flags, "--output_dir", tmp_path / "whole") == 0
    at = kill_at_random_step([*loss, *flags], tmp_path / "killed", 6, 22)
    saved = [p.name for p in checkpoint.list_checkpoints(tmp_path / "killed")]
    assert "checkpoint-24" not in saved, f"killed too late, after {at} steps"
    assert run(*loss, *flags, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "killed")
    steps = [entry["step"] for entry in read_log(tmp_path / "killed" / "log.jsonl")]
    assert steps == list(range(1, 25)), "the log has gaps or repeats"
    losses = [[e["loss"] for e in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    for name in ("unet", "discriminator") if loss is ACT else ("unet",):
        weights = [
            load_file(tmp_path / run / name / "diffusion_pytorch_model.safetensors") for run in ("whole", "killed")
        ]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.slow
def test_with_the_newest_checkpoint_damaged_the_previous_one_serves(flags, tmp_path):
    assert run(*ICT, *flags, "--output_dir", tmp_path / "whole") == 0
    kill_at_random_step([*ICT, *flags], tmp_path / "killed", 12, 22)
    newest = checkpoint.list_checkpoints(tmp_path / "killed")[0]
    file = newest / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match=f"passing over the checkpoint {newest.name}"):
        assert run(*ICT, *flags, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("loss", LOSSES)
def test_stopped_between_steps_and_resumed_a_run_ends_bit_identical(loss, flags, tmp_path, monkeypatch):
    """The short form of the test above: stopped by an exception, in one process."""
    flags = [*flags, "--max_train_steps", 12]
    assert run(*loss, *flags, "--output_dir", tmp_path / "whole") == 0
    step = torch.optim.RAdam.step
    calls = iter(range(1000))

    def stopping(self, *args, **kwargs):
        if next(calls) == (14 if loss is ACT else 7):
            raise SystemExit
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.RAdam, "step", stopping)
    with pytest.raises(SystemExit):
        run(*loss, *flags, "--output_dir", tmp_path / "stopped")
    monkeypatch.undo()
    assert run(*loss, *flags, "--output_dir", tmp_path / "stopped", "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "stopped")


def test_a_named_checkpoint_is_resumed_from(flags, tmp_path):
    flags = [*flags, "--max_train_steps", 12]
    assert run(*ICT, *flags, "--output_dir", tmp_path / "whole", "--checkpoints_total_limit", 9) == 0
    where = tmp_path / "whole" / "checkpoint-5"
    assert run(*ICT, *flags, "--output_dir", tmp_path / "other", "--resume_from_checkpoint", where) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "other")


@pytest.mark.slow
def test_accumulated_parts_equal_one_large_batch(flags, tmp_path):
    shape = {"one": (8, 1), "two": (4, 2), "four": (2, 4)}
    for name, (size, parts) in shape.items():
        own = [
            "--dropout",
            0,
            "--train_batch_size",
            size,
            "--gradient_accumulation_steps",
            parts,
            "--max_train_steps",
            6,
        ]
        assert run("--loss", "ict", *flags, *own, "--output_dir", tmp_path / name) == 0
    whole = final_tensors(tmp_path / "one")
    for name in ("two", "four"):
        for key, value in final_tensors(tmp_path / name).items():
            torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ICT, ACT], ids=["ict", "act"])
def test_several_processes_equal_one(loss, flags, tmp_path):
    own = [*loss, *flags, "--dropout", "0", "--max_train_steps", "6", "--gradient_accumulation_steps", "1"]
    assert run(*own, "--train_batch_size", 8, "--output_dir", tmp_path / "1") == 0
    whole = final_tensors(tmp_path / "1")
    for processes in (2, 4):
        script = ["train_ict.py", *own, "--train_batch_size", 8 // processes]
        done = several_processes(processes, *script, "--output_dir", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr[-3000:]
        split = final_tensors(tmp_path / str(processes))
        assert whole.keys() == split.keys()
        for key, value in split.items():
            torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
        losses = [[e["loss"] for e in read_log(tmp_path / name / "log.jsonl")] for name in ("1", str(processes))]
        np.testing.assert_allclose(*losses, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(flags, tmp_path):
    for name, own in (("plain", []), ("checkpointed", ["--gradient_checkpointing"])):
        assert run(*ICT, *flags, *own, "--max_train_steps", 5, "--output_dir", tmp_path / name) == 0
    assert_bitwise_equal(tmp_path / "plain", tmp_path / "checkpointed")
