"""What all programs do before they import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_ict.settings import ArgumentParser
from diffusers_ict.training.recipe import parse

WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
LOAD = """
import importlib, os, sys
from diffusers_ict.commands.main import PROGRAMS
for name in PROGRAMS.values():
    importlib.import_module(f"diffusers_ict.commands.{name}")
assert "torch" not in sys.modules
print({name: value for name, value in os.environ.items() if name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")})
import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_that_wait_spin_for_a_while_only_unless_the_user_chose(chosen, expected):
    """libgomp itself tells what it has read."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **chosen}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)
    assert f"GOMP_SPINCOUNT = '{expected.get('GOMP_SPINCOUNT', '0')}'" in done.stderr


def test_a_tilde_is_the_home_in_every_flag_and_recipe_and_a_hub_id_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("train_data_dir: ~/images\npretrained_model_name_or_path: someone/ddpm~1\n")
    recipe = parse(["--config=~/recipe.yaml", "--output_dir=~/out", "--hub_model_id", "a/b"], "train_ict.py", None)
    assert (recipe.output_dir, recipe.train_data_dir) == (str(tmp_path / "out"), str(tmp_path / "images"))
    assert (recipe.pretrained_model_name_or_path, recipe.hub_model_id) == ("someone/ddpm~1", "a/b")
    parser = ArgumentParser("convert.py", None)
    parser.add_argument("source")
    parser.add_argument("output_dir", type=Path)
    options = parser.parse_args(["~/model.pt", "~"])
    assert (options.source, options.output_dir) == (str(tmp_path / "model.pt"), tmp_path)
