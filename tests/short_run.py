"""Training runs of seconds, in this process, and what they saved."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, files_of
from safetensors.torch import load_file

from diffusers_ict.commands import train as train_ict
from diffusers_ict.training import checkpoint

ICT = ["--loss", "ict", "--dropout", "0.3"]
ACT = ["--loss", "act", "--dropout", "0.3", "--objective", "consistency=ict", "augment=true", "augment_tau=1e-6",
       "augment_horizon=300", "r1_interval=4"]  # fmt: skip
CT = ["--loss", "ct", "--dropout", "0.3"]
# Stages begin after 7, 9 and 11 steps, and so on.
ECT = ["--loss", "ect", "--dropout", "0.3", "--objective", "align_steps=7", "stage_steps=2"]
# ACT has every part; the others are run with the slow tests
LOSSES = [
    pytest.param(ICT, id="ict", marks=pytest.mark.slow),
    pytest.param(CT, id="ct", marks=pytest.mark.slow),
    pytest.param(ECT, id="ect", marks=pytest.mark.slow),
    pytest.param(ACT, id="act"),
]


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, EMAs, moments."""
    newest = checkpoint.list_checkpoints(folder)[0]
    return {f"{f.stem}/{k}": v for f in newest.glob("*.safetensors") for k, v in load_file(f).items()}


def assert_bitwise_equal(a: Path, b: Path) -> None:
    """Two runs ended with the same weights, EMAs and moments."""
    left, right = final_tensors(a), final_tensors(b)
    assert left.keys() == right.keys()
    assert any("exp_avg_sq" in key for key in left)
    different = [key for key in left if left[key].numpy().tobytes() != right[key].numpy().tobytes()]
    assert not different, different


def words(*flags) -> list[str]:
    """Flags as words; ECT has no grid, whose size the common flags set."""
    strings = [str(flag) for flag in flags]
    without_grid = {"ect", "consistency=ect"} & set(strings)
    return [word for word in strings if not (without_grid and word.startswith(("s0=", "s1=")))]


def run(*flags) -> int:
    return train_ict.main(words(*flags))


def assert_refused(tmp_path: Path, capsys, message: str, *flags) -> None:
    """The run is refused by one sentence that holds `message`, with exit code 2, and writes nothing to `tmp_path`."""
    capsys.readouterr()
    before = files_of(tmp_path)
    assert run(*flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1, err
    assert files_of(tmp_path) == before


def several_processes(count: int, script: str, *flags) -> subprocess.CompletedProcess:
    """One of train_scripts/ on processes that know of each other."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += [str(ROOT / "train_scripts" / script), *words(*flags)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


two_processes = partial(several_processes, 2)
