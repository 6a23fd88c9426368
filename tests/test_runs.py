"""The scripts of documented runs, with small networks, few steps and data made on the spot."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ONE_LEVEL, ROOT, TINY, write_npz

from diffusers_ict.hub.check_repository import is_publishable

pytestmark = pytest.mark.slow


def call(name: str, environment: dict[str, str]) -> str:
    """What a script prints."""
    own = {**os.environ, **environment, "PYTHON": sys.executable}
    script = ROOT / "benchmarks" / "runs" / name
    done = subprocess.run(["sh", script], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_cifar10_is_trained_in_several_calls_and_measured_along_the_way(tmp_path):
    write_npz(tmp_path / "cifar10.npz", count=200, channels=3)
    unet = {**TINY, **ONE_LEVEL, "in_channels": 3, "out_channels": 3, "_class_name": "UNet2DModel"}
    (tmp_path / "unet.json").write_text(json.dumps({**unet, "num_class_embeds": 4}))
    paths = {"DATA": "cifar10.npz", "UNET": "unet.json", "RUNS": "", "RESULTS": "results"}
    environment = {
        **{name: str(tmp_path / value) for name, value in paths.items()},
        **{"CLASSES": "yes", "EAGER": "yes", "STEPS": "200", "BATCH": "4", "SAMPLES": "100", "TENTHS": "1 5 10"},
    }
    assert "not done: call it again" in call("cifar10_h200.sh", {**environment, "MINUTES": "0.04"})
    call("cifar10_h200.sh", {**environment, "MINUTES": "10"})
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert found.keys() == {"cifar10_ict_classes", *(f"cifar10_ict_classes-{step}" for step in (20, 100, 200))}
    rows = [found[f"cifar10_ict_classes-{step}"]["rows"][0] for step in (20, 100, 200)]
    curve = [row["results"]["1"]["frechet"] for row in rows]
    assert all(value > 0 for value in curve)
    assert len(set(curve)) == 3, "each is of other weights"
    assert (tmp_path / "results" / "cifar10_ict_classes-1.png").is_file()


def test_fashion_is_trained_measured_and_kept_with_its_card(tmp_path):
    write_npz(tmp_path / "fashion32.npz", count=200)
    (tmp_path / "unet.json").write_text(
        json.dumps({**TINY, **ONE_LEVEL, "num_class_embeds": 4, "_class_name": "UNet2DModel"})
    )
    paths = {"UNET": "unet.json", "RUNS": "", "RESULTS": "results", "CARD": "card"}
    call(
        "fashion32_ict.sh",
        {**{name: str(tmp_path / value) for name, value in paths.items()}, "STEPS": "40", "SAMPLES": "100"},
    )
    (row,) = json.loads((tmp_path / "results" / "fashion32_ict.json").read_text())["rows"]
    assert (row["steps"], row["batch_size"]) == (40, 16)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "license: mit" in card
    assert all(f"| {steps} | {weights} |" in card for steps in (1, 2) for weights in ("published", "std01"))
    assert is_publishable(str(tmp_path / "card"))
    assert (tmp_path / "card" / "samples" / "2-step.png").is_file()


def test_fashion_is_tuned_from_a_ddpm_of_its_own(tmp_path):
    write_npz(tmp_path / "fashion32.npz", count=200)
    (tmp_path / "unet.json").write_text(json.dumps({**TINY, **ONE_LEVEL, "_class_name": "UNet2DModel"}))
    paths = {"UNET": "unet.json", "RUNS": "", "RESULTS": "results"}
    own = {name: str(tmp_path / value) for name, value in paths.items()}
    call("fashion32_tuned.sh", {**own, "DDPM_STEPS": "20", "STEPS": "20", "SAMPLES": "100"})
    (row,) = json.loads((tmp_path / "results" / "fashion32_tuned.json").read_text())["rows"]
    assert (row["steps"], row["batch_size"]) == (20, 16)
    log = [json.loads(line) for line in (tmp_path / "fashion32_tuned" / "log.jsonl").read_text().splitlines()]
    assert max(entry["stage"] for entry in log) == 4


def test_cifar10_is_tuned_from_a_ddpm_in_several_calls(tmp_path):
    write_npz(tmp_path / "cifar10.npz", count=200, channels=3)
    (tmp_path / "unet.json").write_text(
        json.dumps({**TINY, **ONE_LEVEL, "in_channels": 3, "out_channels": 3, "_class_name": "UNet2DModel"})
    )
    paths = {"DATA": "cifar10.npz", "UNET": "unet.json", "RUNS": "", "RESULTS": "results"}
    own = {name: str(tmp_path / value) for name, value in paths.items()}
    own |= {"EAGER": "yes", "STEPS": "120", "DDPM_STEPS": "100", "BATCH": "4", "SAMPLES": "100", "MINUTES": "10"}
    assert "not done: call it again" in call("cifar10_tuned_h200.sh", {**own, "MINUTES": "1e-9"})
    first = json.loads((tmp_path / "cifar10_ddpm" / "log.jsonl").read_text().splitlines()[-1])
    assert first["step"] < 100
    assert "not done: call it again" in call("cifar10_tuned_h200.sh", own)
    assert "done: " in call("cifar10_tuned_h200.sh", own)
    (row,) = json.loads((tmp_path / "results" / "cifar10_tuned.json").read_text())["rows"]
    assert row["steps"] == 120
    log = [json.loads(line) for line in (tmp_path / "cifar10_tuned" / "log.jsonl").read_text().splitlines()]
    assert max(entry["stage"] for entry in log) == 5
