"""Runs that must be equal: killed and resumed, in parts, in processes, with recomputed activations.

A run that goes on from an older checkpoint, or in another folder, shadows, prunes and takes over nothing.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from short_run import (
    ACT,
    CT,
    ECT,
    ICT,
    LOSSES,
    assert_bitwise_equal,
    assert_refused,
    final_tensors,
    run,
    several_processes,
    words,
)

from diffusers_ict.training import checkpoint, opening_data
from diffusers_ict.training.log import read_log

LATEST = ["--resume_from_checkpoint", "latest"]
BRIEFLY = ["--max_train_minutes", 1e-6]


def kill_at_random_step(flags: list[str], folder: Path, earliest: int, latest: int) -> int:
    """Start the run in a process of its own, SIGKILL it while it trains; the number of steps it had logged."""
    at = random.SystemRandom().randint(earliest, latest)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_scripts" / "train_ict.py"), *words(*flags), "--output_dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    log, deadline = folder / "log.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"the run ended by itself: {errors.decode()[-2000:]}"
    return at


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ICT, ECT, CT, ACT], ids=["ict", "ect", "ct", "act"])
def test_killed_and_resumed_a_run_ends_bit_identical(loss, flags, tmp_path):
    assert run(*loss, *flags, "--output_dir", tmp_path / "whole") == 0
    at = kill_at_random_step([*loss, *flags], tmp_path / "killed", 6, 22)
    saved = [p.name for p in checkpoint.list_checkpoints(tmp_path / "killed")]
    assert "checkpoint-24" not in saved, f"killed too late, after {at} steps"
    if damaged := loss is ICT and bool(saved):  # then the one before serves, if there is one
        (tmp_path / "killed" / saved[0] / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=f"passing over the checkpoint {saved[0]}") if damaged else nullcontext():
        assert run(*loss, *flags, "--output_dir", tmp_path / "killed", *LATEST) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "killed")
    steps = [entry["step"] for entry in read_log(tmp_path / "killed" / "log.jsonl")]
    assert steps == list(range(1, 25)), "the log has gaps or repeats"
    losses = [[e["loss"] for e in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    for name in ("unet", "discriminator") if loss is ACT else ("unet",):
        exported = [tmp_path / folder / name / "diffusion_pytorch_model.safetensors" for folder in ("whole", "killed")]
        assert exported[0].read_bytes() == exported[1].read_bytes()


@pytest.mark.parametrize("loss", LOSSES)
def test_stopped_between_steps_and_resumed_a_run_ends_bit_identical(loss, flags, tmp_path, monkeypatch):
    """The short form of the test above: stopped by an exception, in one process."""
    own = [*loss, *flags, "--max_train_steps", 12]
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    step = torch.optim.RAdam.step
    calls = iter(range(1000))

    def stopping(self, *args, **kwargs):
        if next(calls) == (14 if loss is ACT else 7):
            raise SystemExit
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.RAdam, "step", stopping)
    with pytest.raises(SystemExit):
        run(*own, "--output_dir", tmp_path / "stopped")
    monkeypatch.undo()
    assert run(*own, "--output_dir", tmp_path / "stopped", "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "stopped")
    named = tmp_path / "whole" / "checkpoint-10"
    assert run(*own, "--output_dir", tmp_path / "other", "--resume_from_checkpoint", named) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ICT, ACT], ids=["ict", "act"])
def test_several_processes_and_accumulated_parts_equal_one_large_batch(loss, flags, tmp_path):
    """A step of eight images: at once, in parts, on two processes in parts, and on four processes."""
    own = [*loss, *flags, "--dropout", "0", "--max_train_steps", "6"]
    for name, processes, size, parts in (("1", 1, 8, 1), ("parts", 1, 2, 4), ("2", 2, 2, 2), ("4", 4, 2, 1)):
        split = ["--train_batch_size", size, "--gradient_accumulation_steps", parts, "--output_dir", tmp_path / name]
        if processes == 1:
            assert run(*own, *split) == 0
            continue
        done = several_processes(processes, "train_ict.py", *own, *split)
        assert done.returncode == 0, done.stderr[-3000:]
    whole = final_tensors(tmp_path / "1")
    assert all(any(part in key for key in whole) for part in ("unet", "ema_0", "exp_avg_sq"))
    losses = [entry["loss"] for entry in read_log(tmp_path / "1" / "log.jsonl")]
    for name in ("parts", "2", "4"):
        split = final_tensors(tmp_path / name)
        assert whole.keys() == split.keys()
        for key, value in split.items():
            # The gradient of a key's bias is zero but for rounding, which Adam's ratio makes large.
            close = {"rtol": 1e-3, "atol": 2e-5} if ".to_k.bias" in key else {"rtol": 1e-5, "atol": 1e-6}
            torch.testing.assert_close(value, whole[key], **close, msg=lambda m, key=key: f"{key}: {m}")
        split_losses = [entry["loss"] for entry in read_log(tmp_path / name / "log.jsonl")]
        np.testing.assert_allclose(split_losses, losses, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(flags, tmp_path):
    for name, own in (("plain", []), ("checkpointed", ["--gradient_checkpointing"])):
        assert run(*ICT, *flags, *own, "--max_train_steps", 5, "--output_dir", tmp_path / name) == 0
    assert_bitwise_equal(tmp_path / "plain", tmp_path / "checkpointed")


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def test_a_run_that_goes_on_from_an_older_checkpoint_is_what_latest_finds(finished, tmp_path):
    out = tmp_path / "out"
    changed = [*finished, "--resume_with_changes", "--learning_rate", 1e-4]
    with pytest.warns(UserWarning, match=r"renamed to superseded-\*: checkpoint-12, checkpoint-10"):
        assert run(*changed, *BRIEFLY, "--resume_from_checkpoint", out / "checkpoint-5") == 3
    superseded = ["superseded-checkpoint-10", "superseded-checkpoint-12"]
    assert names(out) == ["checkpoint-5", "checkpoint-6", *superseded]
    content = bytearray((out / "log.jsonl").read_bytes())
    content[5] ^= 0x80  # a damaged log does not stop a resume
    (out / "log.jsonl").write_bytes(content)
    assert run(*changed, *LATEST) == 0
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == list(range(2, 13))
    changes = checkpoint.load_latest(out).state["changes"]
    assert [change["step"] for change in changes] == [5]


def test_a_run_does_not_take_over_the_folder_of_another(finished, tmp_path, capsys):
    other = shutil.copytree(tmp_path / "out", tmp_path / "other")
    there = ["--resume_from_checkpoint", tmp_path / "out" / "checkpoint-5", "--output_dir", other]
    assert_refused(tmp_path, capsys, "holds another run than that of --resume_from_checkpoint", *finished, *there)


def test_a_run_that_lives_while_another_reads_its_images_is_not_overwritten(finished, tmp_path, monkeypatch, capsys):
    """It ended before the other one took the lock, so that only the contents of the folder tell of it."""
    out, load = tmp_path / "late", opening_data.load_images

    def loading(*args, **kwargs):
        shutil.copytree(tmp_path / "out", out, dirs_exist_ok=True)
        return load(*args, **kwargs)

    monkeypatch.setattr(opening_data, "load_images", loading)
    for resuming in (False, True):
        shutil.rmtree(out, ignore_errors=True)
        if resuming:
            shutil.copytree(tmp_path / "out" / "checkpoint-5", out / "checkpoint-5")
        own = ["--resume_from_checkpoint", out / "checkpoint-5"] if resuming else []
        assert run(*finished, *own, "--output_dir", out) == 2
        assert "was written to by another run meanwhile: start this one again" in capsys.readouterr().err
        assert names(out) == ["checkpoint-10", "checkpoint-12", "checkpoint-5"]
        assert len(read_log(out / "log.jsonl")) == 12


def test_files_of_others_in_the_folder_are_no_run_and_augmentation_can_be_added_with_changes(flags, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "slurm-12.out").write_text("queued")
    own = [*flags, "--max_train_steps", 8, "--output_dir", out, "--image_cache_dir", out / "cache"]
    without = [flag for flag in ACT if "augment" not in flag]
    assert run(*without, *own, *BRIEFLY, *LATEST) == 3
    assert run(*ACT, *own, "--resume_with_changes", *LATEST) == 0
    assert (out / "slurm-12.out").read_text() == "queued"
    assert any(entry.get("augment_p") for entry in read_log(out / "log.jsonl"))
