"""What cannot be measured is told in one sentence, before the work where possible; after it, nothing is lost."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_unet, write_npz
from diffusers import CMStochasticIterativeScheduler
from evaluated import SETTINGS, arguments, refused
from safetensors.torch import load_file, save_file

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import check_repository, evaluate
from diffusers_ict.evaluation import evaluator as program


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A class-conditional model with a variant, and data beside it."""
    base = tmp_path_factory.mktemp("refused")
    write_npz(base / "data.npz", count=100)
    for variant in ("ema5", None):
        unet = make_unet(num_class_embeds=4).eval()
        ConsistencyPipeline(unet, ICTScheduler()).save_pretrained(base / "run", variant=variant)
    return base / "run"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--metrics", "fid", "fds"], "--metrics may be fid, kid, is, pr, psnr, ssim, lpips, got fds"),
        (["--num_samples", 20], "the metric fid needs at least 65 images of each kind with 64 features, got 20"),
        (["--metrics", "is"], "needs class probabilities, which raw pixels in [0, 1] does not give"),
        (["--metrics", "pr", "--num_samples", 4], "the metric pr needs at least 6 images of each kind, got 4"),
        (["--steps"], "--steps needs at least one value"),
        (["--metrics"], "--metrics needs at least one value"),
        (["--variants"], "--variants needs at least one value"),
        (["--num_samples", 0], "--num_samples must be at least 1 and less than 1e+07, got 0"),
        (["--steps", 0], "--steps must lie within 1 and 40, got [0]"),
        (["--variants", "ema7"], "--variants may be published, ema5 for this model, got ema7"),
        (["--extractor", "vgg"], "--extractor must be pixels, inception, dinov2"),
        (["--reference", "x.safetensors"], "or --reference with statistics, one of the three"),
        (["--tune_sigmas", 1], "--tune_sigmas must be at least 2 and less than 9, got 1"),
        (["--resolution", 4], "8x8 of 1 channels, and are 4x4 of 1"),
        (["--image_mode", "RGB"], "8x8 of 1 channels, and are 8x8 of 3"),
        (["--dataset_name", "nowhere.npz"], "there is no file nowhere.npz"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_gets_one_sentence(run_folder, tmp_path, capsys, own, message):
    out = ["--output_dir", tmp_path / "out"]
    refused(capsys, message, *arguments(run_folder, tmp_path, *own), *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extractor", "own", "message"),
    [
        ("inception", ["--num_samples", 20], "needs at least 2049 images of each kind with 2048 features, got 20"),
        ("inception", ["--num_samples", 5000], "needs at least 2049 images of each kind with 2048 features, got 100"),
        ("inception", ["--num_samples", 9, "--metrics", "is"], "the metric is needs at least 10 images"),
        ("dinov2", ["--num_samples", 5000], "needs at least 1025 images of each kind with 1024 features, got 100"),
        ("inception", ["--resolution", 4], "8x8 of 1 channels, and are 4x4 of 1"),
        ("dinov2", ["--metrics", "is"], "needs class probabilities, which dinov2 does not give"),
    ],
)
def test_what_needs_more_images_is_refused_before_weights_are_downloaded(
    run_folder, tmp_path, monkeypatch, capsys, extractor, own, message
):
    monkeypatch.setattr(program, "make_extractor", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # whatever has to be installed
    refused(capsys, message, *arguments(run_folder, tmp_path, "--extractor", extractor, "--metrics", "fid", *own))


def test_broken_models_and_data_get_one_sentence(run_folder, tmp_path, capsys):
    data = run_folder.parent / "data.npz"
    unet = make_unet().eval()
    unet.conv_out.weight.data[0, 0] = torch.nan
    ConsistencyPipeline(unet, ICTScheduler()).save_pretrained(tmp_path / "broken")
    own = [*SETTINGS, "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out"]
    refused(capsys, "draws images that are not numbers", tmp_path / "broken", "--dataset_name", data, *own)
    refused(capsys, "no consistency pipeline could be loaded", tmp_path, "--dataset_name", data, *own)
    ConsistencyPipeline(make_unet(num_class_embeds=7).eval(), ICTScheduler()).save_pretrained(tmp_path / "seven")
    refused(capsys, "the model has 7 classes and the data has 4", tmp_path / "seven", "--dataset_name", data, *own)
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 8, 8), np.uint8))
    refused(capsys, "holds no images", run_folder, "--dataset_name", tmp_path / "empty.npz", *own)
    ConsistencyPipeline(make_unet(sample_size=None).eval(), ICTScheduler()).save_pretrained(tmp_path / "no_size")
    refused(capsys, "must have a sample_size", tmp_path / "no_size", "--dataset_name", data, *own)
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 8, 8), np.uint8))
    for pair in ((tmp_path / "one.npz", data), (data, tmp_path / "one.npz")):
        refused(capsys, "needs at least 4 images of each kind, got 1", pair[0], "--dataset_name", pair[1], *own,
                "--metrics", "kid")  # fmt: skip
    np.savez(tmp_path / "few.npz", images=np.zeros((5, 8, 8), np.uint8))
    few = "the metric pr needs at least 6 images of each kind"
    refused(capsys, few, tmp_path / "few.npz", "--dataset_name", data, *own, "--metrics", "pr")
    refused(capsys, few, data, "--dataset_name", tmp_path / "few.npz", *own, "--metrics", "pr")
    (tmp_path / "folder").mkdir()
    refused(capsys, "cannot be opened", run_folder, "--dataset_name", tmp_path / "folder", *own)
    (tmp_path / "nan.py").write_text(
        "def features(images, device):\n    return images.float().flatten(1)[:, :9] * float('nan')\n"
    )
    nan = ["--extractor", tmp_path / "nan.py"]
    refused(capsys, "features that are not numbers", run_folder, "--dataset_name", data, *own, *nan)
    save_file({"features": torch.zeros(3, 2)}, tmp_path / "odd.safetensors")
    shared = ["--reference", tmp_path / "odd.safetensors", "--labels", "uniform"]
    refused(capsys, "is not a file of reference statistics", run_folder, *own, *shared)
    refused(capsys, "does not say how frequent classes are", run_folder, *own, *shared[:2])
    write_npz(tmp_path / "large.npz", side=16)
    assert evaluate.main([str(w) for w in (tmp_path / "large.npz", "--dataset_name", tmp_path / "large.npz", *own[2:],
                                           "--metrics", "kid", "--extractor", "pixels")]) == 0  # fmt: skip
    shutil.rmtree(tmp_path / "out")
    (large,) = (p for p in (tmp_path / "cache").glob("reference-*") if load_file(p)["mean"].shape == (256,))
    capsys.readouterr()
    shared = ["--reference", large, "--labels", "uniform"]
    refused(capsys, "8x8 of 1 channels, and are 16x16 of 1", run_folder, *own, *shared)
    shared += ["--extractor", tmp_path / "nan.py"]
    refused(capsys, "use the same --extractor and weights", run_folder, *own, *shared)
    assert not (tmp_path / "out").exists()


BAD_EXTRACTORS = {
    "nothing = 1\n": "it must define a function features(images, device)",
    "def features(\n": "cannot be loaded: SyntaxError",
    "raise ValueError('first\\nsecond')\n": "cannot be loaded: ValueError: first",
    "def features(images, device):\n    return [[1.0]] * len(images)\n": "got an object of type list as features",
    "def features(images, device):\n    return images.float()\n": "got (1, 1, 8, 8) as features of 1 images",
    "def features(images, device):\n    return images.flatten(1)[:0].float()\n": "got (0, 64) as features of 1 images",
    "def features(images, device):\n    return images.flatten(1).float(), 5\n": "got an object of type int as logits",
    "def features(images, device):\n    return images.nothing\n": "fails for images (1, 1, 8, 8): AttributeError",
    "def features(images, device):\n    raise SystemExit(0)\n": "fails for images (1, 1, 8, 8): SystemExit",
    "def features(images, device):\n    return images.flatten(1)[:, :9].float() / 0\n": "features that are not numbers",
    "def features(images, device):\n    return images.flatten(1)[:, :0].float()\n": "got (1, 0) as features of 1",
    "def features(images, device):\n    return 1e36 * images.flatten(1)[:, :2].float()\n": "too large to compute kid",
    "def features(images, device):\n    return images.flatten(1)[:, :1 + len(images) // 8].float()\n":
        "bad.py must give as many numbers for every image",
}  # fmt: skip


@pytest.mark.parametrize("code", BAD_EXTRACTORS)
def test_a_bad_extractor_is_told_in_one_sentence(run_folder, tmp_path, capsys, code):
    (tmp_path / "bad.py").write_text(code)
    own = ["--extractor", tmp_path / "bad.py", "--metrics", "kid", "--num_samples", 8, "--batch_size", 30]
    refused(capsys, BAD_EXTRACTORS[code], *arguments(run_folder, tmp_path, *own, "--output_dir", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["output_dir", "cache_dir"])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_made(run_folder, tmp_path, capsys, setting):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        words = arguments(run_folder, tmp_path, "--output_dir", tmp_path / "out", f"--{setting}", place)
        refused(capsys, f"--{setting} must be a folder, and {tmp_path / 'file'} is a file", *words)
    assert not (tmp_path / "cache").exists()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("evaluate.write_json", "a file cannot be read or written: No space left on device"),
        ("features.save_file", "give another --cache_dir"),
    ],
)
def test_a_full_disk_is_one_sentence(run_folder, tmp_path, capsys, monkeypatch, where, message):
    monkeypatch.setattr(f"diffusers_ict.evaluation.{where}", full)
    words = arguments(run_folder, tmp_path, "--steps", 1, "--output_dir", tmp_path / "out")
    refused(capsys, message, *words)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.filterwarnings("ignore")  # of what diffusers finds
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("unet/diffusion_pytorch_model.safetensors", lambda content: content[:5000]),
        ("unet/diffusion_pytorch_model.safetensors", lambda content: b"\xff" * 64 + content[64:]),
        ("unet/config.json", lambda content: b"[]"),
        ("unet/config.json", lambda content: b"{}"),
        ("model_index.json", lambda content: b"nonsense"),
        ("scheduler/scheduler_config.json", lambda content: b"nonsense"),
    ],
)
def test_a_damaged_model_is_one_sentence_for_every_program(run_folder, tmp_path, capsys, file, damage):
    model = shutil.copytree(run_folder, tmp_path / "run")
    (model / file).write_bytes(damage((model / file).read_bytes()))
    shutil.copy(run_folder.parent / "data.npz", tmp_path)
    assert evaluate.main(arguments(model, tmp_path, "--output_dir", tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert len([line for line in err.splitlines() if line.startswith("diffusers-ict evaluate: ")]) == 1, err
    assert "no consistency pipeline could be loaded" in err
    assert check_repository.main([str(model)]) == 2
    assert "cannot load" in capsys.readouterr().err


def test_the_levels_found_are_written_whole_or_not_at_all(run_folder, tmp_path, monkeypatch):
    model = shutil.copytree(run_folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (model / "scheduler").iterdir()}
    shutil.copy(run_folder.parent / "data.npz", tmp_path)

    def stopped(self, folder):
        (Path(folder) / "scheduler_config.json").write_text('{"half')
        raise KeyboardInterrupt

    monkeypatch.setattr(CMStochasticIterativeScheduler, "save_pretrained", stopped)
    worse = iter(range(999, 0, -1))
    monkeypatch.setattr(program.Evaluator, "figures", lambda *args: ({"fid": next(worse)}, []))
    assert evaluate.main(arguments(model, tmp_path, "--tune_sigmas", 2, "--labels", "uniform")) == 130
    assert {path.name: path.read_bytes() for path in (model / "scheduler").iterdir()} == before
