"""The training script as a whole: what it leaves behind, exact resume, equivalent runs, and doors that shut."""

import json
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
import train_ict
from conftest import ROOT, TINY, make_unet, write_npz
from diffusers import ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from diffusers_ict import ConsistencyPipeline, fast_columns
from diffusers_ict.training import checkpoint
from diffusers_ict.training.log import read_log

ICT = ["--loss", "ict", "--dropout", "0.3"]
ACT = ["--loss", "act", "--consistency", "ict", "--dropout", "0.3", "--augment", "--augment_tau", "1e-6",
       "--augment_horizon", "300", "--r1_interval", "4"]  # fmt: skip
CT = ["--loss", "ct", "--dropout", "0.3"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "unet.json"
    path.write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"}))
    return path


@pytest.fixture
def flags(data: Path, config: Path) -> list[str]:
    """Flags of a run of seconds: 24 steps in which N changes several times."""
    return [
        *("--dataset_name", str(data), "--model_config_name_or_path", str(config)),
        *("--train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_train_steps", "24"),
        *("--s0", "2", "--s1", "16", "--learning_rate", "1e-3", "--ema_decays", "0.9", "0.5", "--random_flip"),
        *("--checkpointing_steps", "5", "--checkpoints_total_limit", "3", "--logging_steps", "1"),
        *("--num_validation_images", "4"),
    ]


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, EMAs, moments."""
    newest = checkpoint.list_checkpoints(folder)[0]
    return {f"{f.stem}/{k}": v for f in newest.glob("*.safetensors") for k, v in load_file(f).items()}


def assert_bitwise_equal(a: Path, b: Path) -> None:
    left, right = final_tensors(a), final_tensors(b)
    assert left.keys() == right.keys()
    assert any("exp_avg_sq" in key for key in left)
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different, different


def run(*flags) -> int:
    return train_ict.main([str(flag) for flag in flags])


def kill_at_random_step(flags: list[str], folder: Path, earliest: int, latest: int) -> int:
    """Start the run in a process of its own, SIGKILL it while it trains; the number of steps it had logged."""
    at = random.SystemRandom().randint(earliest, latest)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_scripts" / "train_ict.py"), *flags, "--output_dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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


@pytest.mark.parametrize("loss", [ICT, CT, ACT], ids=["ict", "ct", "act"])
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


def test_a_named_checkpoint_is_resumed_from(flags, tmp_path):
    assert run(*ICT, *flags, "--output_dir", tmp_path / "whole", "--checkpoints_total_limit", 9) == 0
    where = tmp_path / "whole" / "checkpoint-10"
    assert run(*ICT, *flags, "--output_dir", tmp_path / "other", "--resume_from_checkpoint", where) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "other")


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


def test_two_processes_equal_one(flags, tmp_path):
    own = ["--dropout", "0", "--max_train_steps", "6", "--gradient_accumulation_steps", "1"]
    assert run("--loss", "ict", *flags, *own, "--train_batch_size", 8, "--output_dir", tmp_path / "one") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29519"]
    script = [str(ROOT / "train_scripts" / "train_ict.py"), "--loss", "ict", *flags, *own, "--train_batch_size", "4"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *script, "--output_dir", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, split = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
    assert whole.keys() == split.keys()
    for key, value in split.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    losses = [[e["loss"] for e in read_log(tmp_path / name / "log.jsonl")] for name in ("one", "two")]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_output_folder_holds_what_others_need(flags, tmp_path):
    folder = tmp_path / "out"
    assert run(*ICT, *flags, "--validation_steps", 12, "--output_dir", folder) == 0
    names = {p.name for p in folder.iterdir()}
    assert {"model_index.json", "unet", "scheduler", "samples", "recipe.yaml", "log.jsonl", "training.png"} <= names
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-0000012.png", "step-0000024.png"]
    with Image.open(folder / "training.png") as plot:
        assert plot.size[0] > 100

    shadows = {"main": None, "ema5": "ema5"}
    newest = checkpoint.list_checkpoints(folder)[0]
    for number, variant in enumerate(shadows.values()):
        expected = load_file(newest / f"ema_{number}.safetensors")
        unet = ConsistencyPipeline.from_pretrained(folder, variant=variant).unet
        assert all(torch.equal(p, expected[name]) for name, p in unet.named_parameters())
    for kind in (DiffusionPipeline, ConsistencyModelPipeline):
        images = kind.from_pretrained(folder)(2, num_inference_steps=2, output_type="np").images
        assert images.shape == (2, 8, 8, 1)

    entry = read_log(folder / "log.jsonl")[-1]
    assert entry["num_levels"] == 17
    assert entry["loss"] > 0
    assert entry["images_per_second"] > 0
    assert len(entry["loss_by_sigma"]) >= 1
    unet = UNet2DModel.from_pretrained(folder / "unet")
    assert (unet.time_embedding.linear_1.weight[:, fast_columns(unet)] == 0).all()


def test_no_file_written_names_the_machine_or_a_token(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_plantedplantedplanted")
    monkeypatch.chdir(tmp_path)
    make_unet().save_pretrained(tmp_path / "given")
    where = flags.index("--model_config_name_or_path")
    own = [*flags[:where], *flags[where + 2 :], "--pretrained_model_name_or_path", tmp_path / "given"]
    assert run(*ICT, *own, "--output_dir", tmp_path / "out") == 0
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for secret in ("hf_planted", str(Path.home()), str(tmp_path), str(ROOT)):
                assert secret.encode() not in content, f"{file} holds {secret}"


def test_training_learns(flags, tmp_path):
    assert (
        run(
            "--loss", "ict", "--dropout", 0, *flags, "--max_train_steps", 150, "--s1", 2, "--output_dir", tmp_path / "o"
        )
        == 0
    )
    losses = [entry["loss"] for entry in read_log(tmp_path / "o" / "log.jsonl")]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_a_warm_start_continues_and_keeps_fast_columns_where_they_are_used(flags, tmp_path, config, capsys):
    make_unet(seed=3).save_pretrained(tmp_path / "given")
    where = flags.index("--model_config_name_or_path")
    own = [*flags[:where], *flags[where + 2 :], "--pretrained_model_name_or_path", tmp_path / "given"]
    assert run(*ICT, *own, "--max_train_steps", 4, "--output_dir", tmp_path / "out") == 0
    assert "the given weights use fast frequencies of the time embedding: they are kept" in capsys.readouterr().out
    unet = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    before = make_unet(seed=3)
    fast = fast_columns(unet)
    assert (unet.time_embedding.linear_1.weight[:, fast] != 0).any()
    shift = (unet.conv_in.weight - before.conv_in.weight).abs().max()
    assert 0 < shift < 0.1


def test_bfloat16_trains_on_cpu(flags, tmp_path):
    own = ["--mixed_precision", "bf16", "--dropout", 0, "--s1", 2, "--max_train_steps", 100]
    assert run("--loss", "ict", *flags, *own, "--output_dir", tmp_path / "out") == 0
    assert all(v.dtype == torch.float32 for v in final_tensors(tmp_path / "out").values())
    losses = [entry["loss"] for entry in read_log(tmp_path / "out" / "log.jsonl")]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_both_players_train_in_half_precision(flags, tmp_path, precision):
    own = ["--mixed_precision", precision, "--max_train_steps", 6]
    assert run(*ACT, *flags, *own, "--output_dir", tmp_path / "out") == 0
    entries = read_log(tmp_path / "out" / "log.jsonl")
    assert all(np.isfinite(entry["discriminator_loss"]) for entry in entries)
    (penalised,) = [entry for entry in entries if "r1" in entry]
    assert penalised["r1"] > 0
    assert penalised["augment_p"] > 0
    assert penalised["augment_tau"] == 1e-6
    tensors = final_tensors(tmp_path / "out")
    assert all(v.isfinite().all() for v in tensors.values())
    moved = tensors["discriminator_optimizer/logit.weight|exp_avg"]
    assert moved.abs().max() > 0


def test_gradient_checkpointing_changes_nothing(flags, tmp_path):
    for name, own in (("plain", []), ("checkpointed", ["--gradient_checkpointing"])):
        assert run(*ICT, *flags, *own, "--max_train_steps", 5, "--output_dir", tmp_path / name) == 0
    assert_bitwise_equal(tmp_path / "plain", tmp_path / "checkpointed")


def test_tensorboard_gets_the_log(flags, tmp_path):
    assert (
        run(*ICT, *flags, "--max_train_steps", 5, "--report_to", "tensorboard", "--output_dir", tmp_path / "out") == 0
    )
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_shuts_the_door(flags, tmp_path, capsys):
    own = ["--report_to", "trackio", "--output_dir", tmp_path / "out"]
    shut(tmp_path, capsys, "--report_to trackio needs its library: pip install trackio", *flags, *own)


def test_dry_run_tells_the_plan_and_touches_nothing(flags, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run("--loss", "ict", *flags, "--max_train_steps", 400, "--dry_run", "--output_dir", tmp_path / "out") == 0
    out = capsys.readouterr().out
    count = sum(p.numel() for p in make_unet().parameters())
    assert f"{count / 1e6:.2f} M" in out
    assert "400 of 8 images" in out
    assert "4: 3 from step 0, 5 from step 100, 9 from step 200, 17 from step 300" in out
    assert "GiB" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_nan_stops_the_run_names_step_and_bin_and_keeps_the_last_good_checkpoint(flags, tmp_path, monkeypatch, capsys):
    plain = train_ict.consistency_pair
    calls = iter(range(1000))

    def poisoned(f, x, *args, **kwargs):
        pair = plain(f, x, *args, **kwargs)
        return (
            pair
            if next(calls) < 2 * 13
            else type(pair)(pair.student * float("nan"), pair.target, pair.sigma, pair.sigma_next)
        )

    monkeypatch.setattr(train_ict, "consistency_pair", poisoned)
    assert run(*ICT, *flags, "--logging_steps", 10, "--output_dir", tmp_path / "out") == 1
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (message,) = [line for line in lines if line.startswith("train_ict.py:")]
    assert "the loss of step 13 is not a number at sigma " in message
    assert checkpoint.load_latest(tmp_path / "out").state["step"] == 10


def shut(tmp_path, capsys, message, *flags):
    """The run is refused with one sentence that holds `message`, exit code 2, and nothing written."""
    before = sorted(tmp_path.rglob("*"))
    assert run(*flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--nonsense", 1], "unrecognized arguments"),
        (["--train_batch_size", 40], "a batch must not be larger than the data: 80 images a step"),
        (["--resolution", 9], "must be a multiple of 2, got 9"),
        (["--class_conditional"], "the UNet is made for no classes and the run has 4"),
        (["--max_train_steps", 2], "4 stages and needs at least as many steps"),
        (["--resume_from_checkpoint", "latest"], "holds no usable checkpoint"),
        (["--resume_from_checkpoint", "nowhere/checkpoint-1"], "it does not exist or has no manifest"),
        (["--pretrained_model_name_or_path", "nowhere"], "no UNet2DModel could be loaded from nowhere"),
        (["--loss", "act", "--adversarial_weight", 1.2], "0 < w_mid <= w <= 1"),
        (["--loss", "act", "--adversarial_weight_mid", 0.5], "0 < w_mid <= w <= 1"),
        (["--loss", "act", "--augment_tau", -1], "--augment_tau must be greater than 0"),
    ],
)  # fmt: skip
def test_bad_settings_shut_the_door(flags, tmp_path, capsys, own, message):
    shut(tmp_path, capsys, message, *flags, *own, "--output_dir", tmp_path / "out")


def test_data_that_cannot_be_used_shuts_the_door(flags, tmp_path, capsys):
    out = ["--output_dir", tmp_path / "out"]
    np.savez(tmp_path / "unlabelled.npz", images=np.zeros((64, 8, 8), np.uint8))
    (tmp_path / "empty").mkdir()
    colour = write_npz(tmp_path / "colour.npz", channels=3)
    own = flags[2:]
    shut(
        tmp_path,
        capsys,
        "needs labels",
        "--dataset_name",
        tmp_path / "unlabelled.npz",
        "--class_conditional",
        *own,
        *out,
    )
    shut(tmp_path, capsys, "cannot be opened", "--train_data_dir", tmp_path / "empty", *own, *out)
    shut(tmp_path, capsys, "images have 3 channels", "--dataset_name", colour, *own, *out)


@pytest.mark.parametrize("kind", ["fourier", "learned"])
def test_time_embeddings_that_stock_cannot_sample_shut_the_door(flags, tmp_path, capsys, config, kind):
    config.write_text(json.dumps({**TINY, "time_embedding_type": kind}))
    shut(tmp_path, capsys, "must be 'positional'", *flags, "--output_dir", tmp_path / "out")


def test_a_discriminator_that_does_not_fit_shuts_the_door(flags, tmp_path, capsys):
    path = tmp_path / "config.json"
    own = [*flags, "--loss", "act", "--discriminator_config_name_or_path", path, "--output_dir", tmp_path / "out"]
    for settings, message in (
        ({"in_channels": 3}, "discriminator's in_channels is 3 and the images need 1"),
        (
            {"block_out_channels": [16] * 4, "down_block_types": ["DownBlock2D"] * 4, "norm_num_groups": 8},
            "at least 16 pixels, got 8",
        ),
    ):
        path.write_text(json.dumps({"_class_name": "ConsistencyDiscriminator", **settings}))
        shut(tmp_path, capsys, message, *own)
    path.unlink()
    shut(tmp_path, capsys, "no discriminator config could be read", *own)


def test_another_run_in_the_folder_or_another_recipe_shuts_the_door(flags, tmp_path, capsys):
    out = ["--output_dir", tmp_path / "out"]
    assert run(*ICT, *flags, "--max_train_steps", 4, *out) == 0
    capsys.readouterr()
    shut(tmp_path, capsys, "holds another run", *ICT, *flags, *out)
    resume = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    shut(tmp_path, capsys, "made with seed 0 and this run has 3", *ICT, *flags, *out, *resume, "--seed", 3)
    newest = checkpoint.list_checkpoints(tmp_path / "out")[0]
    (newest / "unet.safetensors").write_bytes(b"torn")
    shut(tmp_path, capsys, "is not as it was written", *ICT, *flags, *out, "--resume_from_checkpoint", newest)


def test_processes_that_do_not_know_of_each_other_shut_the_door(flags, tmp_path, capsys, monkeypatch):
    from diffusers_ict.training import processes

    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(train_ict.UserError, match="2 processes were launched but each runs alone"):
        processes.check_processes(Alone())


@pytest.mark.parametrize("resolution", [8, 12, 16, 28, 32, 64, 96, 128, 256])
def test_the_default_unet_suits_the_resolution(resolution):
    from diffusers_ict.training.unets import check_fits, default_unet_config

    config = default_unet_config(resolution, 3, None)
    check_fits(config, resolution, 3, None)
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
        x = torch.empty(1, 3, resolution, resolution)
        assert unet(x, torch.empty(1)).sample.shape == x.shape
    assert resolution / 2 ** (len(config["block_out_channels"]) - 1) <= 8


@pytest.mark.parametrize("resolution", [4, 9, 50, 257])
def test_resolutions_no_unet_suits_are_refused(resolution):
    from diffusers_ict.training.unets import default_unet_config

    with pytest.raises(train_ict.UserError):
        default_unet_config(resolution, 3)


def test_dropout_can_be_kept_to_small_feature_maps():
    from diffusers_ict.training.unets import limit_dropout

    unet = make_unet(dropout=0.4)
    limit_dropout(unet, 4)

    def rates(block):
        return {m.p for m in block.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0}

    assert rates(unet.down_blocks[0]) == set() == rates(unet.up_blocks[1])
    assert 0.4 in rates(unet.down_blocks[1])
    assert 0.4 in rates(unet.up_blocks[0])
    assert 0.4 in rates(unet.mid_block)
