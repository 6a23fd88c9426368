"""The client of the Hub of `hub_stand_in.py`: in processes of its own, and in this one."""

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


def connect(monkeypatch, hub: Hub, cache: Path) -> None:
    """Let the client of this process, and those of processes that it starts, talk to the stand-in without pauses."""
    import huggingface_hub.constants as constants
    import huggingface_hub.utils._http as http

    variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    places = {"ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache / "hub"), "HUGGINGFACE_CO_URL_TEMPLATE": template}
    for name, value in {**places, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
