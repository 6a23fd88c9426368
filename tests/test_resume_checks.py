"""What a resume refuses, warns of and allows; runs that begin, go on or stop by one command line."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from filelock import FileLock
from safetensors import SafetensorError
from short_run import ACT, ICT, LOSSES, final_tensors, run

from diffusers_ict.errors import UserError
from diffusers_ict.training import checkpoint, outputs, train
from diffusers_ict.training.interruption import Interruption
from diffusers_ict.training.log import JSONLines, Metrics, read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.resume import check_resumes

LATEST = ["--resume_from_checkpoint", "latest"]


@pytest.fixture
def begun(flags, tmp_path, capsys):
    """Flags of a run in tmp_path/out that has a checkpoint of its fourth step."""
    own = [*ICT, *flags, "--max_train_steps", 4, "--output_dir", tmp_path / "out"]
    assert run(*own) == 0
    capsys.readouterr()
    return own


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--train_batch_size", 8], "made with images in a step 8 and this run has 16"),
        (["--learning_rate", 0.5], "made with learning_rate 0.001 and this run has 0.5"),
        (["--seed", 3], "made with seed 0 and this run has 3"),
        (["--ema_decays", 0.9], "made with ema_decays [0.9, 0.5] and this run has [0.9]"),
    ],
)
def test_what_changes_the_result_is_refused(begun, own, message, capsys):
    assert run(*begun, *LATEST, *own) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("change", ["reordered", "halved", "noise"])
def test_other_images_under_the_same_name_are_refused(begun, change, tmp_path, capsys):
    with np.load(tmp_path / "data.npz") as file:
        images, labels = file["images"], file["labels"]
    rng = np.random.default_rng(0)
    other = {"reordered": images[::-1], "halved": images[:32], "noise": rng.integers(0, 255, images.shape, np.uint8)}
    np.savez(tmp_path / "data.npz", images=other[change], labels=labels[: len(other[change])])
    assert run(*begun, *LATEST) == 2
    assert "made with other images and this run has these" in capsys.readouterr().err


def test_where_images_and_configs_are_read_from_does_not_matter(begun, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "data.npz", tmp_path / "elsewhere" / "pictures.npz")
    shutil.copy(tmp_path / "unet.json", tmp_path / "elsewhere" / "net.json")
    monkeypatch.chdir(tmp_path)
    own = ["--dataset_name", "elsewhere/pictures.npz", "--model_config_name_or_path", "elsewhere/net.json"]
    assert run(*begun, *LATEST, *own) == 0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--train_batch_size", 8, "--gradient_accumulation_steps", 1], "train_batch_size 4 -> 8"),
        (["--gradient_checkpointing"], "gradient_checkpointing False -> True"),
    ],
)
def test_what_changes_rounding_gives_a_warning(begun, own, message):
    with pytest.warns(UserWarning, match=message):
        assert run(*begun, *LATEST, *own) == 0


def test_another_number_of_threads_gives_a_warning(begun):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"threads {threads} -> {threads + 1}"):
            assert run(*begun, *LATEST) == 0
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_that_is_older_than_a_setting_had_its_default():
    now = Recipe().as_dict()
    older = {name: value for name, value in now.items() if name != "ema_warmup"}
    assert check_resumes(now, older) == []
    with pytest.raises(UserError, match="made with ema_warmup True and this run has False"):
        check_resumes({**now, "ema_warmup": False}, older)


def test_changes_on_request_are_made_and_recorded(begun, tmp_path):
    own = [*begun, *LATEST, "--resume_with_changes", "--learning_rate", 0.002, "--max_train_steps", 8]
    assert run(*own) == 0
    changes = [
        {"step": 4, "setting": "max_train_steps", "from": 4, "to": 8},
        {"step": 4, "setting": "learning_rate", "from": 0.001, "to": 0.002},
    ]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["changes"] == changes
    assert "after step 4, `learning_rate` from 0.001 to 0.002" in (tmp_path / "out" / "README.md").read_text()
    assert run(*own, "--no-resume_with_changes") == 0, "the changed recipe is the run's own now"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["changes"] == changes


def test_changes_that_the_weights_do_not_fit_are_refused(begun, tmp_path, capsys):
    before = final_tensors(tmp_path / "out")
    assert run(*begun, *LATEST, "--resume_with_changes", "--loss", "ct") == 2
    assert "holds ema_0, ema_1, optimizer, unet and this run has ema_0, ema_1, optimizer, teacher" in (
        capsys.readouterr().err
    )
    config = json.loads((tmp_path / "unet.json").read_text())
    (tmp_path / "unet.json").write_text(json.dumps({**config, "block_out_channels": [8]}))
    assert run(*begun, *LATEST, "--resume_with_changes") == 2
    assert "has the shape (16," in capsys.readouterr().err
    after = final_tensors(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fewer_steps_than_the_checkpoint_has_are_refused(begun, capsys):
    assert run(*begun, *LATEST, "--resume_with_changes", "--max_train_steps", 3, "--objective", "s1=2") == 2
    assert "--max_train_steps must be at least 4" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["nothing", "a lock", "a beginning", "a damaged checkpoint"])
def test_latest_begins_anew_where_there_is_no_usable_checkpoint(flags, there, tmp_path, monkeypatch):
    """One command line serves a machine that may stop at any time."""
    own = [*ICT, *flags, "--max_train_steps", 6, *LATEST]
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    if there == "a lock":  # and half a recipe
        (tmp_path / "out").mkdir()
        for name in (".lock", ".recipe.yaml.99999.tmp"):
            (tmp_path / "out" / name).touch()
    elif there != "nothing":
        with monkeypatch.context() as patch:
            stop_at(patch, 3 if there == "a beginning" else 6, kill)
            with pytest.raises(SystemExit):
                run(*own, "--output_dir", tmp_path / "out")
    for damaged in checkpoint.list_checkpoints(tmp_path / "out"):
        (damaged / "unet.safetensors").write_bytes(b"torn")
    damage = there == "a damaged checkpoint"
    with pytest.warns(UserWarning, match="passing over") if damage else contextlib.nullcontext():
        assert run(*own, "--output_dir", tmp_path / "out") == 0
    whole, out = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "out")
    assert all(torch.equal(whole[name], out[name]) for name in whole)
    assert [entry["step"] for entry in read_log(tmp_path / "out" / "log.jsonl")] == list(range(1, 7))


def test_latest_begins_nothing_in_the_folder_of_another_run(begun, tmp_path, capsys):
    shutil.rmtree(checkpoint.list_checkpoints(tmp_path / "out")[0])
    assert run(*begun, *LATEST, "--seed", 7) == 2
    assert "its run has seed 0, and this one 7" in capsys.readouterr().err
    (tmp_path / "out" / "recipe.yaml").unlink()
    assert run(*begun, *LATEST) == 2
    assert "holds neither a checkpoint nor a recipe" in capsys.readouterr().err


def kill():
    raise SystemExit


def stop_at(patch, step, action):
    """Call `action` when so many optimizer steps are done."""
    count, done = Metrics.count_step, iter(range(1, 1000))

    def counting(self, images):
        count(self, images)
        if next(done) == step:
            action()

    patch.setattr(Metrics, "count_step", counting)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1))]
)
def test_a_signal_saves_a_checkpoint_after_the_step(flags, number, tmp_path, monkeypatch, capsys):
    own = [*ICT, *flags, "--max_train_steps", 12]
    handler = signal.getsignal(number)
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 7, lambda: os.kill(os.getpid(), number))
        assert run(*own, "--output_dir", tmp_path / "out") == 3
    assert signal.getsignal(number) == handler
    assert (
        f"received {signal.Signals(number).name}, and stopped after step 7 of 12 with a checkpoint; the same command "
        "with --resume_from_checkpoint latest goes on."
    ) in capsys.readouterr().err
    assert checkpoint.list_checkpoints(tmp_path / "out")[0].name == "checkpoint-7"
    assert run(*own, *LATEST, "--output_dir", tmp_path / "out") == 0
    whole, out = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "out")
    assert all(torch.equal(whole[name], out[name]) for name in whole)


def test_a_second_signal_acts_as_ever(flags, tmp_path, monkeypatch):
    def twice():
        ours = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) == ours:  # two at once would count as one
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)  # it arrives here, and not where a library might swallow it

    stop_at(monkeypatch, 2, twice)
    assert run(*ICT, *flags, "--output_dir", tmp_path / "out") == 130


def test_the_time_limit_stops_with_a_checkpoint(flags, tmp_path, capsys):
    own = [*ICT, *flags, "--output_dir", tmp_path / "out", "--max_train_minutes", 1e-6]
    for step in (1, 2):
        assert run(*own, *LATEST) == 3
        assert f"reached the end of --max_train_minutes, and stopped after step {step} of 24" in capsys.readouterr().err
        assert checkpoint.list_checkpoints(tmp_path / "out")[0].name == f"checkpoint-{step}"


def test_a_launcher_that_is_gone_stops_the_run():
    interruption = Interruption(accelerator=type("Alone", (), {"num_processes": 1}))
    assert interruption.reason(0) is None
    interruption.launcher = os.getppid() + 1
    assert interruption.reason(0) == "its launcher is gone"


def test_a_second_writer_is_refused(begun, tmp_path, capsys):
    with FileLock(tmp_path / "out" / ".lock"):
        assert run(*begun, *LATEST) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert run(*begun, *LATEST) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_of_a_checkpoint_is_anything_but_finite(loss, flags, tmp_path, monkeypatch, capsys):
    """Also a moment of the last optimizer, which no loss shows before the next step."""
    own = [*loss, *flags, "--output_dir", tmp_path / "out"]
    step, calls = torch.optim.RAdam.step, iter(range(1000))

    def poisoned(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(calls) == (19 if loss is ACT else 9):  # the last of step 10
            next(iter(self.state.values()))["exp_avg_sq"][0] = float("inf")

    monkeypatch.setattr(torch.optim.RAdam, "step", poisoned)
    assert run(*own) == 1
    err = capsys.readouterr().err
    name = "discriminator_optimizer" if loss is ACT else "optimizer"
    assert f"train_ict.py: {name} " in err
    assert "is not finite after step 10; checkpoint-5 is the newest checkpoint; go on with" in err
    monkeypatch.undo()
    assert run(*own, *LATEST, "--resume_with_changes", "--learning_rate", 5e-4) == 0


def test_a_run_that_diverges_without_a_checkpoint_says_so(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "consistency_pair", lambda *args, **kwargs: nan_pair(*args, **kwargs))
    from diffusers_ict.objectives.base import consistency_pair

    def nan_pair(*args, **kwargs):
        pair = consistency_pair(*args, **kwargs)
        return type(pair)(pair.student * float("nan"), pair.target, pair.sigma, pair.sigma_next)

    assert run(*ICT, *flags, "--output_dir", tmp_path / "out") == 1
    assert "there is no checkpoint; go on with --resume_from_checkpoint latest, --resume_with_changes" in (
        capsys.readouterr().err
    )
    monkeypatch.undo()
    own = [*LATEST, "--resume_with_changes", "--learning_rate", 5e-4, "--max_train_steps", 4]
    assert run(*ICT, *flags, "--output_dir", tmp_path / "out", *own) == 0


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ((JSONLines, "write"), FULL, "a file cannot be read or written: No space left on device"),
        (
            (checkpoint, "save_file"),
            SafetensorError("Error while serializing: I/O error: No space left"),
            "checkpoint-5 cannot",
        ),
        ((outputs, "export"), SafetensorError("I/O error: No space left"), "the model cannot be written: I/O error"),
        ((outputs, "write_card"), FULL, "a file cannot be read or written: No space left on device"),
    ],
    ids=["log", "checkpoint", "export", "card"],
)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    flags, place, error, message, tmp_path, monkeypatch, capsys
):
    own = [*ICT, *flags, "--max_train_steps", 12, *LATEST]
    assert run(*own, "--output_dir", tmp_path / "whole") == 0

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        assert run(*own, "--output_dir", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(*own, "--output_dir", tmp_path / "out") == 0
    whole, out = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "out")
    assert all(torch.equal(whole[name], out[name]) for name in whole)


def test_checkpoints_of_other_versions_are_refused(begun, tmp_path, capsys):
    newest = checkpoint.list_checkpoints(tmp_path / "out")[0]
    saved = checkpoint.load(newest)
    saved.state.pop("format")
    checkpoint.save(tmp_path / "out", 4, saved)
    assert run(*begun, *LATEST) == 2
    assert "made by another version of diffusers-ict" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_to_the_launcher_leaves_a_checkpoint_within_a_step_and_no_process(flags, tmp_path):
    out = tmp_path / "out"
    accelerate = [Path(sys.executable).parent / "accelerate", "launch", "--quiet", "--num_processes", "1"]
    command = [*accelerate, ROOT / "train_scripts" / "train_ict.py", *ICT, *flags, "--max_train_steps", "100000"]
    command += ["--checkpointing_steps", "100000", "--output_dir", out]
    launcher = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    (child,) = wait_for(lambda: psutil.Process(launcher.pid).children())
    wait_for(lambda: (out / "log.jsonl").exists() and len(read_log(out / "log.jsonl")) > 3)
    launcher.terminate()
    launcher.communicate(timeout=60)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    (saved,) = checkpoint.list_checkpoints(out)
    steps = read_log(out / "log.jsonl")[-1]["step"]
    assert checkpoint.load(saved).state["step"] == steps


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_samples_of_the_step_of_a_checkpoint_are_drawn_by_the_resumed_run(flags, tmp_path, monkeypatch):
    """Whether the run was killed between its checkpoint and its samples, or asked to stop at that step."""
    own = [*ICT, *flags, "--max_train_steps", 6, "--validation_steps", 3, "--output_dir", tmp_path / "out"]
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(*own) == 3
    assert run(*own, *LATEST) == 0
    shutil.rmtree(tmp_path / "out" / "samples")
    assert run(*own, *LATEST) == 0
    assert [path.name for path in (tmp_path / "out" / "samples").iterdir()] == ["step-0000006.png"]
