"""Where a model and its figures come from, without naming a user, a host or an absolute path."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from accelerate import Accelerator


def hardware(accelerator: Accelerator) -> str:
    """The kind and number of the devices that compute."""
    count = accelerator.num_processes
    device = accelerator.device
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    kind = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "mps":
        kind = "Apple GPU"
    return f"{count} x {kind}" if count > 1 else kind


@cache
def code_commit() -> str | None:
    """Commit of this package's own checkout, or None where it was installed from elsewhere."""
    file = Path(__file__).resolve()
    tracked, head = ["ls-files", "--error-unmatch", file.name], ["rev-parse", "HEAD"]
    try:
        said = [
            subprocess.run(["git", "-C", file.parent, *words], capture_output=True, text=True, check=True).stdout
            for words in (tracked, head)
        ]
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return said[-1].strip()


@cache
def code_address() -> str | None:
    """Where the repository of this package is, by [project.urls] of pyproject.toml, or None if nothing says so."""
    try:
        urls = metadata.metadata("diffusers-ict").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Repository")
