"""Bad input gets one sentence and exit code 2, and nothing is written."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, TINY, make_unet, write_npz
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from safetensors.torch import save_file
from short_run import assert_refused, run, two_processes
from test_lpips import weights as lpips_weights

from diffusers_ict import ConsistencyPipeline, ICTScheduler, processes
from diffusers_ict.commands import (
    check_repository,
    convert,
    demo,
    edit,
    ema,
    evaluate,
    export_onnx,
    inspect_model,
    publish,
    sample,
)
from diffusers_ict.commands import train as train_ict
from diffusers_ict.commands.program import run_program
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.samples import list_variants

NO_FOLDER = "train_ict.py: --train_data_dir must be a folder of images, got nowhere."


def test_an_impossible_output_folder_shuts_the_door(flags, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for folder, message in (
        (file, "must be a folder, and"),
        (file / "out", f"{file} is a file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("/proc/out", "cannot be written"),
    ):
        assert_refused(tmp_path, capsys, message, *flags, "--output_dir", folder)
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # root may write everywhere
    assert_refused(tmp_path, capsys, "cannot be written: ", *flags, "--output_dir", tmp_path / "out")


@pytest.mark.slow
def test_two_processes_tell_bad_input_once_and_a_quiet_launcher_adds_nothing(tmp_path):
    own = ["--train_data_dir", "nowhere", "--output_dir", tmp_path / "out"]
    done = two_processes("train_ict.py", *own)
    assert done.returncode != 0
    assert done.stderr.count(NO_FOLDER) == 1
    launcher = [Path(sys.executable).parent / "accelerate", "launch", "--quiet", "--num_processes", "1"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launcher, ROOT / "train_scripts" / "train_ict.py", *own]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode != 0
    assert done.stderr == f"{NO_FOLDER}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--train_batch_size", 40], "a batch must not be larger than the data: 80 images a step"),
        (["--model_config_name_or_path", "act_lsun_cat256_unet.json"], "must be a multiple of 32, such as 32, got 8"),
        (["--class_conditional"], "the UNet is made for no classes and the run has 4"),
        (["--max_train_steps", 2], "4 stages and needs at least as many steps"),
        (["--intermediate_sigmas"], "--intermediate_sigmas must name the second noise level of two steps"),
        (["--hub_token", "hf_secret"], "unrecognized arguments: --hub_token hf_...; see"),
        (
            ["--lr_scheduler", "polynomial", "--learning_rate", 1e-8],
            "must be larger, got 1e-08; take linear",
        ),
        (["--augment_tau", 40], "for settings of a method, --objective NAME=VALUE"),
        (["--objective", "s3=1"], "p_mean, p_std, huber_c, metric, cauchy_c, got s3"),
        (["--objective", "s1=1"], "--s1 must be at least --s0, got s1 1 and s0 2"),
        (["--resume_from_checkpoint", "nowhere/checkpoint-1"], "it does not exist or has no manifest"),
        (
            ["--pretrained_model_name_or_path", "nowhere"],
            "path: stock diffusers cannot load nowhere: there is no such folder",
        ),
        (["--intermediate_sigmas", 100], "--intermediate_sigmas: must be different numbers"),
        (["--intermediate_sigmas", 0.01], "choose an intermediate sigma in that range"),
        (["--loss", "act", "--objective", "adversarial_weight=1.2"], "0 < w_mid <= w <= 1"),
        (["--push_to_hub", "--hub_model_id", "some one/my digits"], "user/name"),
        (["--mixed_precision", "fp16"], "--mixed_precision fp16 does not exist on CPUs"),
        (["--report_to", "trackio"], "--report_to trackio needs its library: pip install trackio"),
    ],
)
def test_bad_settings_shut_the_door(flags, tmp_path, capsys, own, message):
    assert_refused(tmp_path, capsys, message, *flags, *own, "--output_dir", tmp_path / "out")


def test_data_that_cannot_be_used_shuts_the_door(flags, tmp_path, capsys):
    np.savez(tmp_path / "unlabelled.npz", images=np.zeros((64, 8, 8), np.uint8))
    (tmp_path / "empty").mkdir()
    save_file(lpips_weights(), tmp_path / "lpips.safetensors")
    lpips = ["--loss", "ct", "--objective", "metric=lpips", f"lpips_weights={tmp_path / 'lpips.safetensors'}"]
    four = ["--dataset_name", write_npz(tmp_path / "rgba.npz", channels=4), "--image_mode", "RGBA"]
    for data, message in (
        (["--dataset_name", tmp_path / "unlabelled.npz", "--class_conditional"], "classes need labels"),
        (["--train_data_dir", tmp_path / "empty"], "holds no images"),
        (["--dataset_name", write_npz(tmp_path / "colour.npz", channels=3)], "images have 3 channels"),
        ([*four, *lpips], "--metric lpips compares images of 1 or 3 channels, got 4"),
    ):
        assert_refused(tmp_path, capsys, message, *data, *flags[2:], "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("kind", ["fourier", "learned"])
def test_time_embeddings_that_stock_cannot_sample_shut_the_door(flags, tmp_path, capsys, config, kind):
    config.write_text(json.dumps({**TINY, "time_embedding_type": kind}))
    assert_refused(tmp_path, capsys, "must be 'positional'", *flags, "--output_dir", tmp_path / "out")


def test_a_discriminator_that_does_not_fit_shuts_the_door(flags, tmp_path, capsys, config):
    path = tmp_path / "config.json"
    own = [*flags, "--loss", "act", "--discriminator_config_name_or_path", path, "--output_dir", tmp_path / "out"]
    assert_refused(tmp_path, capsys, "no discriminator config could be read", *own)
    deep = {"block_out_channels": [16] * 4, "down_block_types": ["DownBlock2D"] * 4, "norm_num_groups": 8}
    small = {"block_out_channels": [16, 32], "down_block_types": ["DownBlock2D"] * 2, "norm_num_groups": 8}

    def write(**settings):
        path.write_text(json.dumps({"_class_name": "ConsistencyDiscriminator", **settings}))

    for settings, message in (
        ({"in_channels": 3}, "discriminator's in_channels is 3 and the images need 1"),
        (deep, "at least 16 pixels, got 8"),
    ):
        write(**settings)
        assert_refused(tmp_path, capsys, message, *own)
    config.write_text(json.dumps({**TINY, "_class_name": "UNet2DModel", "num_class_embeds": 4}))
    own.append("--class_conditional")
    write(**small)
    assert_refused(tmp_path, capsys, "discriminator's num_class_embeds is None and the images need 4", *own)
    write(**small, num_class_embeds=4)
    assert run(*own, "--max_train_steps", 4) == 0


PROGRAMS = {
    "convert": convert,
    "demo": demo,
    "edit": edit,
    "ema": ema,
    "export-onnx": export_onnx,
    "check": check_repository,
    "evaluate": evaluate,
    "inspect": inspect_model,
    "publish": publish,
    "sample": sample,
    "train": train_ict,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_tells_a_mistake_on_its_command_line_in_one_sentence(name, capsys):
    assert PROGRAMS[name].main(["--nonsense"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"diffusers-ict {name}: ")
    assert err.count("\n") == 1, err


def test_a_program_shows_warnings_in_one_line_that_names_flags_and_says_when_it_was_interrupted(capsys):
    shown, plain = [], warnings.formatwarning

    def body():
        shown.append(warnings.formatwarning("images are enlarged to `resolution` 64.", UserWarning, "images.py", 9))
        raise KeyboardInterrupt

    assert run_program("train_ict.py", body) == 130
    assert shown == ["train_ict.py: images are enlarged to --resolution 64.\n"]
    assert warnings.formatwarning is plain
    assert capsys.readouterr().err == "train_ict.py: interrupted.\n"


def test_a_full_memory_is_told_with_a_code_of_its_own(capsys):
    """By PyTorch's own error on CPUs, by those of other libraries, and by those of a GPU."""

    def ask_for_too_much():
        torch.empty(1 << 50)

    def numpy_asks():
        np.empty(1 << 50)

    def fail(error):
        def body():
            raise error

        return body

    cuda = fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    for body, memory in (
        (ask_for_too_much, "this machine"), (numpy_asks, "this machine"), (fail(MemoryError()), "this machine"),
        (fail(OSError(errno.ENOMEM, "Cannot allocate memory")), "this machine"), (cuda, "the GPU"),
    ):  # fmt: skip
        assert run_program("train", body) == 4
        err = capsys.readouterr().err
        assert f"train: the memory of {memory} is full (" in err
        assert "lower the size of a batch (--train_batch_size" in err
        assert err.count("\n") == 1, err
    with pytest.raises(RuntimeError, match="nobody foresaw"):
        run_program("train", fail(RuntimeError("nobody foresaw this")))


def test_processes_that_do_not_know_of_each_other_and_what_accelerate_refuses_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched but each runs alone"):
        processes.check_processes(type("Alone", (), {"num_processes": 1}))
    monkeypatch.delenv("WORLD_SIZE")
    Accelerator(mixed_precision="no")
    with pytest.raises(UserError, match="accelerate cannot run with these settings: AcceleratorState has already"):
        processes.make_accelerator("bf16", None, str(tmp_path))


def test_of_two_label_columns_one_has_to_be_named(tmp_path):
    classes = ClassLabel(names=["a", "b"])
    rows = {"image": [Picture.new("L", (8, 8))] * 2, "kind": [0, 1], "colour": [1, 0]}
    data = Dataset.from_dict(rows, Features({"image": Image(), "kind": classes, "colour": classes}))
    data.to_parquet(tmp_path / "data.parquet")
    own = {"dataset_name": str(tmp_path / "data.parquet"), "class_conditional": True}
    with pytest.raises(UserError, match="several columns or arrays could be meant by `label_column`: kind, colour"):
        load_images(**own)
    assert load_images(**own, label_column="colour").labels.tolist() == [1, 0]


def test_unknown_sizes_names_and_hubs_are_told():
    pipeline = ConsistencyPipeline(make_unet(sample_size=None, num_class_embeds=2), ICTScheduler())
    pipeline.id2label = {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="this model has no sample_size in its config: give height and width"):
        pipeline(class_labels="cat", height=8)
    with pytest.raises(ValueError, match="class_labels by name must be among 'cat', 'dog', got 'cow'"):
        pipeline(class_labels="cow", height=8, width=8)
    assert pipeline(class_labels="cat", height=8, width=8, output_type="np").images.shape == (1, 8, 8, 1)
    with pytest.raises(UserError, match="the files of someone/model cannot be listed: "):
        list_variants("someone/model")
