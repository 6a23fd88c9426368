"""Programs that talk to the Hub of `hub_stand_in.py`, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from hub_stand_in import Hub

NAME = "someone/my-digits"
TOKEN = "hf_planted0123456789abcdef"
SCRIPTS = ROOT / "train_scripts"


def client(hub: Hub, cache: Path, *arguments, **more) -> subprocess.CompletedProcess:
    """A Python process that talks to the stand-in; `more`: variables of its environment."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"], **more}
    environment.pop("HF_HUB_OFFLINE")
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def push(hub: Hub, folder: Path, cache: Path, *flags, **more) -> subprocess.CompletedProcess:
    """The program that publishes `folder` as `NAME`."""
    return client(hub, cache, SCRIPTS / "publish.py", folder, "--hub_model_id", NAME, *flags, **more)
