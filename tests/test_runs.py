"""The scripts of documented runs, with small networks, few steps and data made on the spot."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ONE_LEVEL, ROOT, TINY, write_npz


@pytest.mark.slow
def test_cifar10_is_trained_in_several_calls_and_measured_along_the_way(tmp_path):
    write_npz(tmp_path / "cifar10.npz", count=200, channels=3)
    unet = {**TINY, **ONE_LEVEL, "in_channels": 3, "out_channels": 3, "_class_name": "UNet2DModel"}
    (tmp_path / "unet.json").write_text(json.dumps({**unet, "num_class_embeds": 4}))
    own = {"DATA": "cifar10.npz", "UNET": "unet.json", "RUNS": "", "RESULTS": "results"}
    environment = {
        **os.environ,
        **{name: str(tmp_path / value) for name, value in own.items()},
        **{
            "CLASSES": "yes",
            "EAGER": "yes",
            "STEPS": "200",
            "BATCH": "4",
            "MINUTES": "0.04",
            "SAMPLES": "100",
            "TENTHS": "1 5 10",
        },
        "PYTHON": sys.executable,
    }

    def call(**changes):
        script = ROOT / "benchmarks" / "runs" / "cifar10_h200.sh"
        return subprocess.run(
            ["sh", script], env={**environment, **changes}, capture_output=True, text=True, check=False
        )

    first = call()
    assert first.returncode == 0, first.stderr[-2000:]
    assert "not done: call it again" in first.stdout
    second = call(MINUTES="10")
    assert second.returncode == 0, second.stderr[-2000:]
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert found.keys() == {"cifar10_ict_classes", *(f"cifar10_ict_classes-{step}" for step in (20, 100, 200))}
    curve = [found[f"cifar10_ict_classes-{step}"]["rows"][0]["results"]["1"]["frechet"] for step in (20, 100, 200)]
    assert all(value > 0 for value in curve)
    assert len(set(curve)) == 3, "each is of other weights"
    assert (tmp_path / "results" / "cifar10_ict_classes-1.png").is_file()
