"""The short form of `make torture`: every fault that a fork can inject, a few times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from faults.children import Lost
from faults.compare import check_close, check_nothing_left, check_same
from filelock import FileLock
from safetensors.numpy import save_file


def test_nothing_is_lost_in_the_short_form(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "torture.py"), "--share", "0.004"]
    command += ["--output", str(tmp_path / "t")]
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # its Hub is a local one
    done = subprocess.run(command, env=online, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert len(rows) >= 14
    assert sum(row["injected"] for row in rows) >= 20
    assert [row["fault"] for row in rows if row["lost"] or row["survived"] != row["trials"]] == []


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two runs that are the same but for the time they took."""
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        saved = tmp_path / name / "checkpoint-2"
        saved.mkdir(parents=True)
        save_file({"w": np.zeros(3, np.float32)}, saved / "unet.safetensors")
        (saved / "state.json").write_text(json.dumps({"step": 2, "train_seconds": seconds}))
        line = json.dumps({"step": 1, "loss": 0.5, "train_seconds": seconds})
        (tmp_path / name / "log.jsonl").write_text(f"{line}\n")
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("checkpoint-2/state.json", '{"step": 3}'),
        ("log.jsonl", '{"step": 1, "loss": 0.4}\n'),
        ("new.png", "x"),
    ],
)
def test_any_difference_but_of_time_is_seen(folders, path, content):
    check_same(*folders)
    check_close(*folders)
    (folders[1] / path).write_text(content)
    with pytest.raises(Lost, match=path):
        check_same(*folders)


def test_one_bit_of_a_tensor_is_seen_and_rounding_is_not(folders):
    save_file({"w": np.full(3, 1e-7, np.float32)}, folders[1] / "checkpoint-2" / "unet.safetensors")
    check_close(*folders)
    with pytest.raises(Lost, match=r"unet\.safetensors"):
        check_same(*folders)
    save_file({"w": np.full(3, 1e-3, np.float32)}, folders[1] / "checkpoint-2" / "unet.safetensors")
    with pytest.raises(Lost, match="unet/w differs"):
        check_close(*folders)


def test_leftovers_and_locks_are_seen(folders):
    with FileLock(folders[0] / ".lock"), pytest.raises(Lost, match="is held"):
        check_nothing_left(folders[0])
    check_nothing_left(folders[0])
    for folder, name in zip(folders, (".checkpoint-2.tmp", "tmp/publish-x")):
        (folder / name).mkdir(parents=True)
        with pytest.raises(Lost, match="left over"):
            check_nothing_left(folder)
