"""The package as users install it: a wheel in an environment that has the libraries it needs and no checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment_without_us, files_of, write_npz
from hub_stand_in import Hub, serve
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """`diffusers-ict` of a wheel that was built from this checkout."""
    wheels = tmp_path_factory.mktemp("wheels")
    source = wheels / "source"  # a copy, because a build leaves files in its folder
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", str(source), "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, cwd=wheels, timeout=600)
    (wheel,) = wheels.glob("diffusers_ict-*.whl")
    python = environment_without_us(tmp_path_factory.mktemp("installed"))  # its own, for this installs into it
    install = ["--python", python, "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, cwd=wheels, timeout=600)
    return Path(python).parent / "diffusers-ict"


@pytest.fixture
def run(program, tmp_path):
    """run(words) calls `diffusers-ict` of the wheel in `tmp_path`: what it printed. `more`: variables."""

    def run(*words, **more) -> str:
        environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"], **more}
        environment.pop("HF_HUB_OFFLINE")
        environment.pop("PYTHONPATH", None)
        environment["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        command = [str(program), *map(str, words)] if len(words) > 1 else ["bash", "-ec", words[0]]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_commands_of_the_readme_run_as_they_stand(run, tmp_path):
    """Those that need no network, beside `model_cards`; training by its dry run."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    (tmp_path / "my_images").mkdir()
    for number in range(16):
        Image.new("RGB", (40, 32), (number * 16, 128, 255 - number * 16)).save(tmp_path / "my_images" / f"{number}.png")
    (sample,) = re.findall(r"^diffusers-ict sample .*$", readme, re.M)
    assert "60 samples with 2 steps" in run(sample)
    (train,) = re.findall(r"^diffusers-ict train (?:.*\\\n)*.*$", readme, re.M)
    assert "steps       8000 of 16 images" in run(f"{train} --dry_run")
    for code in re.findall(r"```python\n(.*?)```", readme, re.S):
        (tmp_path / "sample.png").unlink(missing_ok=True)
        (tmp_path / "snippet.py").write_text(code)
        run("python snippet.py")
        assert (tmp_path / "sample.png").is_file()


def test_a_wheel_trains_evaluates_converts_checks_and_publishes(run, program, tmp_path):
    write_npz(tmp_path / "data.npz")
    short = ["--max_train_steps", 8, "--train_batch_size", 4, "--num_validation_images", 2, "--ema_decays", 0.9]
    run("train", "--config", "digits", "--dataset_name", "data.npz", *short, "--output_dir", "model")
    figures = ["--extractor", "pixels", "--metrics", "kid", "--num_samples", 8, "--cache_dir", "cache"]
    assert "kid" in run("evaluate", "model", *figures)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| 1 | published |" in card
    assert "\ndiffusers-ict train --dataset_name data.npz " in card, "the command that ran"
    assert "\ndiffusers-ict evaluate model --extractor pixels " in card
    assert "4 samples" in run("sample", "model", "--num_samples", 4)
    assert "1 picture, edited" in run(
        "edit", "model", "--images", "samples.png", "--center_crop", "--num_inference_steps", 1
    )
    assert "Nearer to a training image" in run("inspect", "model", "--num_samples", 8)
    run("convert", "model", "converted", "--license", "mit")
    assert "\nok     sampling: " in run("check", "converted")
    with serve(Hub()) as hub:
        where = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_x"}
        run("publish", "model", "--hub_model_id", "someone/digits", **where, HF_HUB_DISABLE_XET="1")
        assert {"README.md", "pipeline.py", "run.json"} <= hub.repositories["someone/digits"].files.keys()
    page = ROOT / "src" / "diffusers_ict" / "web" / "page"
    (installed,) = program.parent.parent.glob("lib/python*/site-packages/diffusers_ict/web/page")
    assert files_of(installed) == files_of(page)
    assert json.loads((tmp_path / "model" / "run.json").read_text())["commit"] is None, "there is no checkout"
