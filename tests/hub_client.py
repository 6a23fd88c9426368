"""The client of the Hub of `hub_stand_in.py`: in processes of its own, and in this one."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, make_unet, write_npz
from hub_stand_in import Hub

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.hub.metadata import ConversionMetadata

NAME = "someone/my-digits"
TOKEN = "hf_planted0123456789abcdef"
SCRIPTS = ROOT / "train_scripts"


def digits_flags(base: Path) -> list[str]:
    """Flags of a class-conditional run of a moment, from base/data.npz to base/my-digits."""
    own = ["--dataset_name", base / "data.npz", "--class_conditional", "--max_train_steps", 8, "--train_batch_size", 4]
    more = ["--ema_decays", 0.9, 0.5, "--num_validation_images", 4, "--license", "cc-by-4.0"]
    write_npz(base / "data.npz")
    return [str(flag) for flag in [*own, *more, "--output_dir", base / "my-digits"]]


def save_converted(folder: Path, *variants: str | None) -> Path:
    """A folder that can be published: a tiny model, large enough for LFS, and what a conversion says of it."""
    for variant in variants:
        ConsistencyPipeline(make_unet().eval(), ICTScheduler()).save_pretrained(folder, variant=variant)
    facts = {"license": "mit", "shape": [1, 8, 8], "classes": None, "weights": "0", "parameters": 1, "notes": []}
    origin = {"origin": "a test", "source": "nobody/nothing", "source_on_hub": False, "second_sigma": 0.8}
    ConversionMetadata(**origin, **facts, version="0").write(folder)
    return folder


def environment_of(hub: Hub, cache: Path, **more) -> dict[str, str]:
    """Variables of a process that talks to the stand-in, and `more`."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"], **more}
    environment.pop("HF_HUB_OFFLINE")
    return environment


def client(hub: Hub, cache: Path, *arguments, **more) -> subprocess.CompletedProcess:
    """A Python process that talks to the stand-in; `more`: variables of its environment."""
    command, environment = [sys.executable, *map(str, arguments)], environment_of(hub, cache, **more)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


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
