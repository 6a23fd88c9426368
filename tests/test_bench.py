"""The benchmark of speed runs to its end; what it measures is not tested."""

import json
import subprocess
import sys

import pytest
from bench_step import METHODS
from conftest import ONE_LEVEL, ROOT, TINY


@pytest.mark.slow
def test_every_part_is_measured(tmp_path):
    network = {**TINY, **ONE_LEVEL, "in_channels": 3, "out_channels": 3}
    (tmp_path / "unet.json").write_text(json.dumps({**network, "_class_name": "UNet2DModel"}))
    critic = {"sample_size": 8, "in_channels": 3, "block_out_channels": [16], "down_block_types": ["DownBlock2D"]}
    (tmp_path / "critic.json").write_text(json.dumps({**critic, "norm_num_groups": 8}))
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--output", str(tmp_path / "bench")]
    command += ["--unet", str(tmp_path / "unet.json"), "--discriminator", str(tmp_path / "critic.json")]
    command += ["--precisions", "bf16 channels-last", "--batch_sizes", "2", "--images", "200"]
    command += ["--warm", "1", "--timed", "2", "--repeats", "2"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    report = json.loads((tmp_path / "bench.json").read_text())
    steps = [row for row in report["rows"] if row["part"] == "step"]
    assert len(steps) == 3 + len(METHODS)
    assert len(report["rows"]) == len(steps) + 8 + 2 + 1 + 2
    assert all(row["seconds"] > 0 for row in report["rows"])
    assert all(0.1 < row["against_floor"] < 1000 for row in report["rows"] if "against_floor" in row)
    assert (tmp_path / "bench.md").read_text().count("\n|") == len(report["rows"]) + 2
