"""The scripts of documented runs, with small networks, few steps and data made on the spot."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ONE_LEVEL, ROOT, TINY, write_npz

from diffusers_ict.hub.check_repository import is_publishable

pytestmark = pytest.mark.slow


@pytest.fixture
def script(tmp_path):
    """script(name, ...) runs a script on data and networks in tmp_path, and returns what it prints."""

    def call(name: str, unet: dict | None = None, data: str = "fashion32.npz", channels: int = 1, **variables) -> str:
        write_npz(tmp_path / data, count=200, channels=channels)
        config = {**TINY, **ONE_LEVEL, "in_channels": channels, "out_channels": channels, "_class_name": "UNet2DModel"}
        (tmp_path / "unet.json").write_text(json.dumps({**config, **(unet or {})}))
        paths = {"DATA": data, "UNET": "unet.json", "RUNS": "", "RESULTS": "results", "CARD": "card"}
        own = {**os.environ, **{key: str(tmp_path / path) for key, path in paths.items()}, "PYTHON": sys.executable}
        command = ["sh", ROOT / "benchmarks" / "runs" / name]
        own |= {"SAMPLES": "100", **variables}
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return call


def rows_of(tmp_path, name: str) -> list[dict]:
    return json.loads((tmp_path / "results" / f"{name}.json").read_text())["rows"]


def log_of(tmp_path, name: str) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]


def test_cifar10_is_trained_in_several_calls_and_measured_along_the_way(script, tmp_path):
    own = {"CLASSES": "yes", "EAGER": "yes", "STEPS": "200", "BATCH": "4", "TENTHS": "1 5 10"}
    own |= {"unet": {"num_class_embeds": 4}, "data": "cifar10.npz", "channels": 3}
    assert "not done: call it again" in script("cifar10_h200.sh", MINUTES="0.04", **own)
    script("cifar10_h200.sh", MINUTES="10", **own)
    names = [f"cifar10_ict_classes-{step}" for step in (20, 100, 200)]
    results = (tmp_path / "results").glob("*.json")
    assert sorted(path.stem for path in results) == sorted(["cifar10_ict_classes", *names])
    curve = [rows_of(tmp_path, name)[0]["results"]["1"]["frechet"] for name in names]
    assert all(value > 0 for value in curve)
    assert len(set(curve)) == 3, "each is of other weights"
    assert (tmp_path / "results" / "cifar10_ict_classes-1.png").is_file()


def test_fashion_is_trained_measured_and_kept_with_its_card(script, tmp_path):
    script("fashion32_ict.sh", {"num_class_embeds": 4}, STEPS="40")
    (row,) = rows_of(tmp_path, "fashion32_ict")
    assert (row["steps"], row["batch_size"]) == (40, 16)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "license: mit" in card
    assert all(f"| {steps} | {weights} |" in card for steps in (1, 2) for weights in ("published", "std01"))
    assert is_publishable(str(tmp_path / "card"))
    assert (tmp_path / "card" / "samples" / "2-step.png").is_file()


def test_fashion_is_tuned_from_a_ddpm_of_its_own(script, tmp_path):
    script("fashion32_tuned.sh", DDPM_STEPS="20", STEPS="50")  # 5 of alignment and 5 stages of 9
    (row,) = rows_of(tmp_path, "fashion32_tuned")
    assert (row["steps"], row["batch_size"]) == (50, 16)
    assert max(entry["stage"] for entry in log_of(tmp_path, "fashion32_tuned")) == 4


def test_cifar10_is_tuned_from_a_ddpm_in_several_calls(script, tmp_path):
    own = {"EAGER": "yes", "STEPS": "120", "DDPM_STEPS": "100", "BATCH": "4", "data": "cifar10.npz", "channels": 3}
    assert "not done: call it again" in script("cifar10_tuned_h200.sh", MINUTES="1e-9", **own)
    assert log_of(tmp_path, "cifar10_ddpm")[-1]["step"] < 100
    assert "not done: call it again" in script("cifar10_tuned_h200.sh", MINUTES="10", **own)
    assert "done: " in script("cifar10_tuned_h200.sh", MINUTES="10", **own)
    (row,) = rows_of(tmp_path, "cifar10_tuned")
    assert row["steps"] == 120
    assert max(entry["stage"] for entry in log_of(tmp_path, "cifar10_tuned")) == 5


def test_guidance_is_measured_along_its_scale(script, tmp_path):
    script("fashion32_guidance.sh", STEPS="40")
    for name in ("fashion32_guidance", "fashion32_guidance_ema9"):
        rows = rows_of(tmp_path, name)
        scales = [(row["num_inference_steps"], row["guidance_scale"]) for row in rows]
        assert scales == [(steps, scale) for steps in (1, 2) for scale in (1, 1.25, 1.5, 2)]
        assert (tmp_path / "results" / f"{name}.png").is_file()
    rows = rows_of(tmp_path, "fashion32_guidance")  # averages of so few steps are alike, and lead nowhere
    assert len({row["metrics"]["frechet"] for row in rows}) == 8
