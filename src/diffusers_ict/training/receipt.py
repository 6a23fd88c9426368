"""run.json: the facts of a finished run that its recipe does not tell, for the model card."""

import json
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..version import __version__
from .images import Images
from .recipe import PRACTICAL, Recipe


def write_receipt(
    folder: Path,
    recipe: Recipe,
    accelerator: Accelerator,
    images: Images,
    parameters: int,
    steps: int,
    batch_size: int,
    train_seconds: float,
) -> None:
    """Write `folder/run.json`, the facts after `steps` optimizer steps.

    It names no user, host or path: of hardware the kind, of the data set the name.
    """
    name, start = recipe.dataset_name or recipe.train_data_dir, recipe.pretrained_model_name_or_path
    on_hub = recipe.dataset_name is not None and not Path(name).suffix and not Path(name).exists()
    facts = {
        "dataset": name if on_hub else Path(name).name,
        "dataset_on_hub": on_hub,
        "base_model": start and (Path(start).name if Path(start).exists() else start),
        "base_model_on_hub": start is not None and not Path(start).exists(),
        "images": len(images),
        "shape": list(images.shape),
        "classes": images.num_classes,
        "class_names": images.class_names,
        "parameters": parameters,
        "steps": steps,
        "batch_size": batch_size,
        "images_seen": steps * batch_size,
        "train_seconds": train_seconds,
        "hardware": hardware(accelerator),
        "version": __version__,
        "commit": code_commit(),
        "command": command(recipe),
    }
    (folder / "run.json").write_text(json.dumps(facts, indent=1) + "\n")


def command(recipe: Recipe) -> str:
    """The command line of this recipe: every setting that is not the default, absolute paths by their last part."""
    plain = Recipe(loss=recipe.loss, consistency=recipe.consistency).as_dict()
    plain["discriminator_learning_rate"] = recipe.learning_rate  # which it follows
    words = ["accelerate", "launch", "train_scripts/train_ict.py"]
    if recipe.loss != "ict":
        words += ["--loss", recipe.loss]
    if recipe.loss == "act":
        words += ["--consistency", recipe.consistency]
    kept = PRACTICAL - {"output_dir"}
    for key, value in recipe.as_dict().items():
        if key not in kept and value != plain[key]:
            words += _flag(key, value)
    return shlex.join(words)


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    return [f"--{key}", *map(str, value if isinstance(value, list) else [value])]


def hardware(accelerator: Accelerator) -> str:
    """What computes, without a name that tells whose it is."""
    count = accelerator.num_processes
    device = accelerator.device
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    kind = "Apple GPU" if device.type == "mps" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{count} x {kind}" if count > 1 else kind


def code_commit() -> str | None:
    """Commit of this package's own checkout, or None where it was installed from elsewhere."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode:
            return None
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return None
    return found.stdout.strip() or None
