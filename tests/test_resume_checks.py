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
import yaml
from accelerate.state import AcceleratorState
from conftest import ROOT
from filelock import FileLock
from safetensors import SafetensorError
from short_run import ACT, LOSSES, assert_bitwise_equal, assert_refused, run

from diffusers_ict.errors import UserError
from diffusers_ict.hub.provenance import code_commit
from diffusers_ict.training import checkpoint, outputs, train
from diffusers_ict.training.interruption import Interruption
from diffusers_ict.training.log import JSONLines, Metrics, read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.resume import check_resumes
from diffusers_ict.version import __version__

LATEST = ["--resume_from_checkpoint", "latest"]


@pytest.fixture
def anew(finished, tmp_path):
    """Flags of the same run, whose folder is not there yet."""
    shutil.rmtree(tmp_path / "out")
    return finished


CT_HOLDS = "holds ema_0, ema_1, optimizer, unet and this run has ema_0, ema_1, optimizer, teacher"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([*LATEST, "--train_batch_size", 8], "made with images in a step 8 and this run has 16"),
        ([*LATEST, "--learning_rate", 0.5], "made with learning_rate 0.001 and this run has 0.5"),
        ([*LATEST, "--seed", 3], "made with seed 0 and this run has 3"),
        ([*LATEST, "--ema_decays", 0.9], "made with ema_decays [0.9, 0.5] and this run has [0.9]"),
        ([*LATEST, "--resume_with_changes", "--loss", "ct"], CT_HOLDS),
        ([*LATEST, "--resume_with_changes", "--max_train_steps", 11], "--max_train_steps must be at least 12"),
        ([], "holds another run"),
    ],
)
def test_what_changes_the_result_is_refused(finished, changed, message, tmp_path, capsys):
    assert_refused(tmp_path, capsys, message, *finished, *changed)


def test_another_precision_is_refused_also_where_accelerate_sets_it(finished, tmp_path, capsys, monkeypatch):
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["mixed_precision"] == "no"
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert_refused(tmp_path, capsys, "made with mixed_precision no and this run has bf16", *finished, *LATEST)


@pytest.mark.parametrize("change", ["reordered", "halved", "noise"])
def test_other_images_under_the_same_name_are_refused(finished, change, tmp_path, capsys):
    with np.load(tmp_path / "data.npz") as file:
        images, labels = file["images"], file["labels"]
    rng = np.random.default_rng(0)
    other = {"reordered": images[::-1], "halved": images[:32], "noise": rng.integers(0, 255, images.shape, np.uint8)}
    np.savez(tmp_path / "data.npz", images=other[change], labels=labels[: len(other[change])])
    assert_refused(tmp_path, capsys, "made with other images and this run has these", *finished, *LATEST)


def test_weights_of_another_shape_are_refused_and_where_files_are_read_from_does_not_matter(
    finished, tmp_path, capsys, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "data.npz", tmp_path / "elsewhere" / "pictures.npz")
    shutil.copy(tmp_path / "unet.json", tmp_path / "elsewhere" / "net.json")
    config = json.loads((tmp_path / "unet.json").read_text())
    (tmp_path / "unet.json").write_text(json.dumps({**config, "block_out_channels": [8]}))
    assert_refused(tmp_path, capsys, "has the shape (16,", *finished, *LATEST, "--resume_with_changes")
    monkeypatch.chdir(tmp_path)
    moved = ["--dataset_name", "elsewhere/pictures.npz", "--model_config_name_or_path", "elsewhere/net.json"]
    assert run(*finished, *LATEST, *moved) == 0


def test_what_changes_rounding_gives_a_warning(finished, monkeypatch):
    for changed, message in (
        (["--train_batch_size", 8, "--gradient_accumulation_steps", 1], "train_batch_size 4 -> 8"),
        (["--gradient_checkpointing"], "gradient_checkpointing False -> True"),
    ):
        with pytest.warns(UserWarning, match=message):
            assert run(*finished, *LATEST, *changed) == 0
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.warns(UserWarning, match=f"threads {threads} -> {threads + 1}"):
        assert run(*finished, *LATEST) == 0


def test_a_checkpoint_that_is_older_than_a_setting_had_its_default():
    now = Recipe().as_dict()
    older = {name: value for name, value in now.items() if name != "ema_warmup"}
    assert check_resumes(now, older) == []
    with pytest.raises(UserError, match="made with ema_warmup True and this run has False"):
        check_resumes({**now, "ema_warmup": False}, older)


def test_changes_on_request_are_made_and_recorded(finished, tmp_path):
    own = [*finished, *LATEST, "--resume_with_changes", "--learning_rate", 0.002, "--max_train_steps", 14]
    assert run(*own) == 0
    changes = [
        {"step": 12, "setting": "max_train_steps", "from": 12, "to": 14},
        {"step": 12, "setting": "learning_rate", "from": 0.001, "to": 0.002},
    ]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["changes"] == changes
    assert "after step 12, learning_rate from 0.001 to 0.002" in (tmp_path / "out" / "README.md").read_text()
    assert run(*own, "--no-resume_with_changes") == 0, "the changed recipe is the run's now"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["changes"] == changes


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


@pytest.mark.parametrize("there", ["a lock", "a beginning", "damaged checkpoints"])
def test_latest_begins_anew_where_there_is_no_usable_checkpoint(finished, whole, there, tmp_path, monkeypatch):
    """One command line serves a machine that may stop at any time."""
    out = tmp_path / "out"
    damage = there == "damaged checkpoints"
    for damaged in checkpoint.list_checkpoints(out):
        (damaged / "unet.safetensors").write_bytes(b"torn")
    if not damage:
        shutil.rmtree(out)
    if there == "a lock":  # and half a recipe
        out.mkdir()
        for name in (".lock", ".recipe.yaml.99999.tmp"):
            (out / name).touch()
    if there == "a beginning":
        with monkeypatch.context() as patch:
            stop_at(patch, 3, kill)
            with pytest.raises(SystemExit):
                run(*finished, *LATEST)
    with pytest.warns(UserWarning, match="passing over") if damage else contextlib.nullcontext():
        assert run(*finished, *LATEST) == 0
    assert_bitwise_equal(whole, out)
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == list(range(1, 13))


def test_a_second_writer_and_what_is_no_checkpoint_of_this_run_or_version_are_refused(finished, tmp_path, capsys):
    with FileLock(tmp_path / "out" / ".lock"):
        assert_refused(tmp_path, capsys, "is in use by another run", *finished, *LATEST)
    newest, *older = checkpoint.list_checkpoints(tmp_path / "out")
    saved = checkpoint.load(newest)
    assert saved.state["version"] == __version__
    assert saved.state["commit"] == code_commit()
    saved.state.update({"format": 1, "version": "0.0.7", "commit": "abc"})
    checkpoint.save(tmp_path / "out", 12, saved)
    assert_refused(tmp_path, capsys, "was made by diffusers-ict 0.0.7 (commit abc)", *finished, *LATEST)
    for name in ("format", "version", "commit"):
        saved.state.pop(name)
    checkpoint.save(tmp_path / "out", 12, saved)
    assert_refused(tmp_path, capsys, "was made by a version of diffusers-ict before 0.1", *finished, *LATEST)
    (newest / "unet.safetensors").write_bytes(b"torn")
    assert_refused(tmp_path, capsys, "is not as it was written", *finished, "--resume_from_checkpoint", newest)
    for folder in (newest, *older):
        shutil.rmtree(folder)
    assert_refused(tmp_path, capsys, "its run has seed 0, and this one 7", *finished, *LATEST, "--seed", 7)
    (tmp_path / "out" / "recipe.yaml").unlink()
    assert_refused(tmp_path, capsys, "holds neither a checkpoint nor a recipe", *finished, *LATEST)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)),
    ],
)
def test_a_signal_saves_a_checkpoint_after_the_step(anew, whole, number, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, 7, lambda: os.kill(os.getpid(), number))
        assert run(*anew) == 3
    assert signal.getsignal(number) == handler
    assert (
        f"received {signal.Signals(number).name}, and stopped after step 7 of 12 with a checkpoint; the same command "
        "with --resume_from_checkpoint latest goes on."
    ) in capsys.readouterr().err
    assert checkpoint.list_checkpoints(tmp_path / "out")[0].name == "checkpoint-7"
    assert run(*anew, *LATEST) == 0
    assert_bitwise_equal(whole, tmp_path / "out")


def test_a_second_signal_acts_as_ever(anew, monkeypatch):
    def twice():
        ours = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: signal.getsignal(signal.SIGINT) != ours)  # two at once would count as one
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)  # it arrives here, and not where a library might swallow it

    stop_at(monkeypatch, 2, twice)
    assert run(*anew) == 130


@pytest.mark.parametrize("work", ["export", "plot_training", "write_card"])
def test_ctrl_c_as_the_model_is_written_is_one_sentence_and_the_same_command_writes_it(
    finished, whole, work, tmp_path, monkeypatch, capsys
):
    def interrupted(*_args, **_options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2)  # it arrives here, or, where the run only notes it, the next time

    with monkeypatch.context() as patch:
        patch.setattr(outputs, work, interrupted)
        (tmp_path / "out" / "README.md").unlink()
        assert run(*finished, *LATEST) == 130
    assert capsys.readouterr().err == "diffusers-ict train: interrupted; checkpoint-12 is the newest checkpoint.\n"
    assert run(*finished, *LATEST) == 0
    assert_bitwise_equal(whole, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()


def test_the_time_limit_stops_with_a_checkpoint(anew, tmp_path, capsys):
    for step in (1, 2):
        assert run(*anew, "--max_train_minutes", 1e-6, *LATEST) == 3
        assert f"reached the end of --max_train_minutes, and stopped after step {step} of 12" in capsys.readouterr().err
        assert checkpoint.list_checkpoints(tmp_path / "out")[0].name == f"checkpoint-{step}"


def test_a_launcher_that_is_gone_stops_the_run():
    interruption = Interruption(accelerator=type("Alone", (), {"num_processes": 1}))
    assert interruption.reason(0) is None
    interruption.launcher = os.getppid() + 1
    assert interruption.reason(0) == "its launcher is gone"


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_of_a_checkpoint_is_anything_but_finite(loss, flags, tmp_path, monkeypatch, capsys):
    """Also a moment of the last optimizer, which no loss shows before the next step."""
    own = [*loss, *flags, "--max_train_steps", 12, "--output_dir", tmp_path / "out"]
    step, calls = torch.optim.RAdam.step, iter(range(1000))

    def poisoned(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(calls) == (19 if loss is ACT else 9):  # the last of step 10
            next(iter(self.state.values()))["exp_avg_sq"][0] = float("inf")

    monkeypatch.setattr(torch.optim.RAdam, "step", poisoned)
    assert run(*own) == 1
    err = capsys.readouterr().err
    name = "discriminator_optimizer" if loss is ACT else "optimizer"
    assert f"diffusers-ict train: {name} " in err
    assert "is not finite after step 10; checkpoint-5 is the newest checkpoint; go on with" in err
    monkeypatch.undo()
    assert run(*own, *LATEST, "--resume_with_changes", "--learning_rate", 5e-4) == 0


@pytest.mark.parametrize(("step", "newest"), [(3, "there is no checkpoint"), (8, "checkpoint-5 is the newest")])
def test_a_loss_that_is_no_number_stops_the_run_which_goes_on_with_changes(step, newest, anew, monkeypatch, capsys):
    """Also where the log, written every ten steps, is where the loss is read."""
    plain, calls = train.consistency_pair, iter(range(1000))

    def poisoned(*args, **kwargs):
        pair = plain(*args, **kwargs)
        bad = next(calls) >= 2 * step
        return type(pair)(pair.student * float("nan"), pair.target, pair.sigma, pair.sigma_next) if bad else pair

    with monkeypatch.context() as patch:
        patch.setattr(train, "consistency_pair", poisoned)
        assert run(*anew, "--logging_steps", 10) == 1
    err = capsys.readouterr().err
    assert f"diffusers-ict train: the loss of step {step} is not a number at sigma " in err
    assert newest in err
    assert "go on with --resume_from_checkpoint latest, --resume_with_changes" in err
    assert run(*anew, *LATEST, "--resume_with_changes", "--learning_rate", 5e-4) == 0


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FILE_NOT_WRITTEN = "a file cannot be read or written: No space left on device"


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(anew, whole, tmp_path, monkeypatch, capsys):
    """It fills up four times: at the log, then at a checkpoint, at the model and at its card."""
    for place, error, message in (
        ((JSONLines, "write"), FULL, FILE_NOT_WRITTEN),
        ((checkpoint, "save_file"), SafetensorError("I/O error: No space left"), "checkpoint-5 cannot"),
        ((outputs, "export"), SafetensorError("I/O error: No space left"), "the model cannot be written: I/O error"),
        ((outputs, "write_card"), FULL, FILE_NOT_WRITTEN),
    ):

        def full(*args, error=error, **kwargs):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(*place, full)
            assert run(*anew, *LATEST) == 2
        assert message in capsys.readouterr().err
        assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(*anew, *LATEST) == 0
    assert_bitwise_equal(whole, tmp_path / "out")


@pytest.mark.slow
def test_sigterm_to_the_launcher_leaves_a_checkpoint_within_a_step_and_no_process(anew, tmp_path):
    out = tmp_path / "out"
    accelerate = [Path(sys.executable).parent / "accelerate", "launch", "--quiet", "--num_processes", "1"]
    command = [*accelerate, ROOT / "train_scripts" / "train_ict.py", *anew]
    command += ["--max_train_steps", 100_000, "--checkpointing_steps", 100_000]
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
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def test_git_is_asked_for_the_commit_before_a_run_takes_signals(flags, tmp_path, monkeypatch):
    """Launchers stop whole groups by a signal, which would end git and cost a checkpoint the commit of its code."""
    asked = []
    enter = Interruption.__enter__

    def entered(self):
        asked.append(code_commit.cache_info().currsize)
        return enter(self)

    code_commit.cache_clear()
    monkeypatch.setattr(Interruption, "__enter__", entered)
    assert run(*flags, "--max_train_steps", 8, "--output_dir", tmp_path / "out") == 0
    assert asked == [1]
    assert code_commit.cache_info().misses == 1
