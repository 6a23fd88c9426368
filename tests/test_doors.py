"""Bad input gets one sentence and exit code 2, and nothing is written."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import inspect_model
import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY, write_npz
from safetensors.torch import save_file
from short_run import ICT, run, two_processes
from test_lpips import weights as lpips_weights

from diffusers_ict.commands import check_repository, convert, demo, evaluate, export_onnx, publish
from diffusers_ict.commands import train as train_ict
from diffusers_ict.commands.program import run_program
from diffusers_ict.errors import UserError
from diffusers_ict.training import checkpoint


def test_an_impossible_output_folder_shuts_the_door(flags, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    shut(tmp_path, capsys, "must be a folder, and", *flags, "--output_dir", file)
    shut(tmp_path, capsys, f"{file} is a file", *flags, "--output_dir", file / "out")
    shut(tmp_path, capsys, "File name too long", *flags, "--output_dir", tmp_path / ("x" * 300))
    shut(tmp_path, capsys, "cannot be written", *flags, "--output_dir", "/proc/out")


def test_a_read_only_output_folder_shuts_the_door(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # root may write everywhere
    shut(tmp_path, capsys, "cannot be written: ", *flags, "--output_dir", tmp_path / "out")


@pytest.mark.slow
def test_two_processes_tell_bad_input_once(tmp_path):
    done = two_processes("train_ict.py", "--train_data_dir", "nowhere", "--output_dir", tmp_path / "out")
    assert done.returncode != 0
    assert done.stderr.count("train_ict.py: --train_data_dir must be a folder of images, got nowhere.") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_quiet_launcher_adds_nothing_to_the_sentence(tmp_path):
    script = [ROOT / "train_scripts" / "train_ict.py", "--train_data_dir", "nowhere", "--output_dir", tmp_path / "out"]
    launcher = [Path(sys.executable).parent / "accelerate", "launch", "--quiet", "--num_processes", "1"]
    more = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run([*launcher, *more, *script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr == "train_ict.py: --train_data_dir must be a folder of images, got nowhere.\n"
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_shuts_the_door(flags, tmp_path, capsys):
    own = ["--report_to", "trackio", "--output_dir", tmp_path / "out"]
    shut(tmp_path, capsys, "--report_to trackio needs its library: pip install trackio", *flags, *own)


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
        (["--model_config_name_or_path", "act_lsun_cat256_unet.json"], "must be a multiple of 32, got 8"),
        (["--class_conditional"], "the UNet is made for no classes and the run has 4"),
        (["--max_train_steps", 2], "4 stages and needs at least as many steps"),
        (["--objective", "p_mean=nan"], "--objective p_mean must be finite, got nan"),
        (["--intermediate_sigmas"], "--intermediate_sigmas must name the second noise level of two steps"),
        (["--hub_token", "hf_secret"], "unrecognized arguments: --hub_token hf_...; see"),
        (["--s1", 40], "for settings of a method, --objective NAME=VALUE"),
        (["--objective", "s3=1"], "--objective of ICT can have s0, s1, p_mean, p_std, huber_c, got s3"),
        (["--objective", "s1"], "NAME=VALUE is wanted"),
        (["--resume_from_checkpoint", "nowhere/checkpoint-1"], "it does not exist or has no manifest"),
        (["--pretrained_model_name_or_path", "nowhere"], "path: stock diffusers cannot load nowhere"),
        (["--loss", "act", "--objective", "adversarial_weight=1.5"], "0 < w_mid <= w <= 1"),
        (["--intermediate_sigmas", 100], "--intermediate_sigmas: must be different numbers"),
        (["--intermediate_sigmas", 0.01], "choose an intermediate sigma in that range"),
        (["--loss", "act", "--objective", "adversarial_weight=1.2"], "0 < w_mid <= w <= 1"),
        (["--loss", "act", "--objective", "adversarial_weight_mid=0.5"], "0 < w_mid <= w <= 1"),
        (["--loss", "act", "--objective", "augment_tau=-1"], "--objective augment_tau must be greater than 0"),
        (["--push_to_hub", "--hub_model_id", "some one/my digits"], "user/name"),
        (["--objective", "s1=1"], "--objective s1 must be at least --objective s0, got s1 1 and s0 2"),
        (["--mixed_precision", "fp16"], "--mixed_precision fp16 does not exist on CPUs"),
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
    shut(tmp_path, capsys, "holds no images", "--train_data_dir", tmp_path / "empty", *own, *out)
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


def test_a_discriminator_without_classes_in_a_class_conditional_run_is_refused(flags, tmp_path, capsys, config):
    config.write_text(json.dumps({**TINY, "_class_name": "UNet2DModel", "num_class_embeds": 4}))
    settings = {"block_out_channels": [16, 32], "down_block_types": ["DownBlock2D"] * 2, "norm_num_groups": 8}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"_class_name": "ConsistencyDiscriminator", **settings}))
    own = [*flags, "--loss", "act", "--class_conditional", "--discriminator_config_name_or_path", path]
    message = "the discriminator's num_class_embeds is None and the images need 4"
    shut(tmp_path, capsys, message, *own, "--output_dir", tmp_path / "out")
    path.write_text(json.dumps({"_class_name": "ConsistencyDiscriminator", **settings, "num_class_embeds": 4}))
    assert run(*own, "--max_train_steps", 4, "--output_dir", tmp_path / "out") == 0


def test_lpips_of_images_with_transparency_is_refused(flags, tmp_path, capsys):
    data = write_npz(tmp_path / "rgba.npz", channels=4)
    save_file(lpips_weights(), tmp_path / "lpips.safetensors")
    weights = f"lpips_weights={tmp_path / 'lpips.safetensors'}"
    own = ["--dataset_name", data, "--image_mode", "RGBA", "--loss", "ct", "--objective", "metric=lpips", weights]
    message = "--metric lpips compares images of 1 or 3 channels, got 4"
    shut(tmp_path, capsys, message, *own, "--output_dir", tmp_path / "out")


def test_a_resume_in_another_precision_is_refused(flags, tmp_path, capsys, monkeypatch):
    """Also where the precision comes from accelerate and not from a flag."""
    out = ["--output_dir", tmp_path / "out"]
    assert run(*ICT, *flags, "--max_train_steps", 4, *out) == 0
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["mixed_precision"] == "no"
    capsys.readouterr()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    resume = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    shut(tmp_path, capsys, "made with mixed_precision no and this run has bf16", *ICT, *flags, *out, *resume)


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


PROGRAMS = {
    "convert.py": convert,
    "demo.py": demo,
    "export_onnx.py": export_onnx,
    "check_repository.py": check_repository,
    "evaluate.py": evaluate,
    "inspect_model.py": inspect_model,
    "publish.py": publish,
    "train_ict.py": train_ict,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_tells_a_mistake_on_its_command_line_in_one_sentence(name, capsys):
    assert PROGRAMS[name].main(["--nonsense"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{name}: ")
    assert err.count("\n") == 1, err


def test_warnings_of_a_program_are_one_line_that_names_flags():
    shown, plain = [], warnings.formatwarning

    def body():
        shown.append(warnings.formatwarning("images are enlarged to `resolution` 64.", UserWarning, "images.py", 9))

    assert run_program("train_ict.py", body) == 0
    assert shown == ["train_ict.py: images are enlarged to --resolution 64.\n"]
    assert warnings.formatwarning is plain


def test_processes_that_do_not_know_of_each_other_shut_the_door(flags, tmp_path, capsys, monkeypatch):
    from diffusers_ict import processes

    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched but each runs alone"):
        processes.check_processes(Alone())
