"""What all programs do before they import torch."""

import os
import subprocess
import sys

import pytest

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
        ({}, {"GOMP_SPINCOUNT": "30000"}),
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
