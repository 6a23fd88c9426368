"""Programs of others that people have already, used as the model card and the documentation say."""

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_ict.training.log import flat, read_log

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    importlib.util.find_spec("diffusers.commands.run") is None, reason="`diffusers-cli run` came with diffusers 0.42"
)
def test_the_command_of_the_card_draws_with_the_program_of_diffusers(run):
    (command,) = re.findall(r"^diffusers-cli run .*$", (run / "README.md").read_text(), re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{command} --seed 3 --device-map cpu"],
        cwd=run.parent,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stock = DiffusionPipeline.from_pretrained(run)
    (expected,) = stock(num_inference_steps=2, class_labels=0, generator=torch.Generator().manual_seed(3)).images
    with Image.open(run.parent / "sample.png") as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="pip install trackio")
def test_trackio_gets_the_entries_of_the_log_with_their_steps(flags, tmp_path):
    own = [*flags, "--loss", "ict", "--report_to", "trackio", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_ict", "train", *own],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Reserved keys" not in done.stderr
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        kept = opened.execute("select step, metrics from metrics order by step").fetchall()
    logged = {entry.pop("step"): flat(entry) for entry in read_log(tmp_path / "out" / "log.jsonl")}
    assert len(logged) == 24
    assert {step: json.loads(figures) for step, figures in kept} == logged
