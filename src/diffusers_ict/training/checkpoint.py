"""Checkpoints: folders of safetensors and JSON, written atomically, without pickle.

A checkpoint is written under a temporary name, flushed to disk, then renamed; older ones are pruned after that. A
manifest holds the size and SHA-256 of every file, so that damage is detected. An older checkpoint is deleted only when
enough newer ones have been read back and are as they were written.
"""

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError, first_line
from ..files import atomic_folder, read_tensors, remove_left, sha256
from ..hub.run_files import MANIFEST, STATE, list_checkpoints
from ..processes import on_several_machines


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run: `tensors` by file and name, and `state`, plain JSON that holds the step."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(folder: Path, step: int, checkpoint: Checkpoint, keep: int | None = None) -> Path:
    """Write `folder/checkpoint-{step}` and prune all but the newest `keep` (None keeps all).

    A process killed at any moment leaves either the complete new checkpoint or the old ones untouched.

    Raises:
        UserError: it cannot be written; the old ones are untouched, and nothing else is left.
    """
    target = folder / f"checkpoint-{step}"
    try:
        with atomic_folder(target, fsync=True) as temporary:
            for name, tensors in checkpoint.tensors.items():
                # safetensors refuses views that share memory, and hashes need a fixed layout.
                tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
                save_file(tensors, temporary / f"{name}.safetensors")
            (temporary / STATE).write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
            manifest = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{target.name} cannot be written: {reason}; {describe_newest(folder)}.") from error
    if keep is not None:
        _prune(folder, keep)
    return target


def _prune(folder: Path, keep: int) -> None:
    """Delete what is older than the newest `keep` good checkpoints, and the damaged ones among these."""
    good: list[Path] = []
    rest: list[Path] = []
    for path in list_checkpoints(folder):
        usable = len(good) < keep and find_corruption(path) is None
        (good if usable else rest).append(path)
    if len(good) == keep:
        for path in rest:
            shutil.rmtree(path, ignore_errors=True)  # what is left is found damaged, and goes the next time


def tidy(folder: Path, keep: int | None = None) -> None:
    """Delete what a run that was killed left of what it wrote, and of checkpoints that it pruned.

    Nobody else writes checkpoints here, whatever machine began them.
    """
    for path in folder.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    remove_left(folder)
    if keep is not None:
        _prune(folder, keep)


def set_aside_after(folder: Path, step: int) -> None:
    """Rename checkpoints of more than `step` steps, so that `latest` finds those of the run that goes on from there."""
    newer = [path for path in list_checkpoints(folder) if _step_of(path) > step]
    for path in newer:
        set_aside(path)
    if newer:
        names = ", ".join(path.name for path in newer)
        warnings.warn(f"newer than where the run goes on, and renamed to superseded-*: {names}.", stacklevel=2)


def set_aside(path: Path) -> None:
    """Rename a checkpoint, if there is one, so that another may have its name."""
    if path.exists():
        aside = path.with_name(f"superseded-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def find_corruption(path: Path) -> str | None:
    """The corruption of a checkpoint folder, in a few words; None when every file is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
                return f"{name} is not as it was written"
        if {file.name for file in path.iterdir()} != {*manifest, MANIFEST} or STATE not in manifest:
            return "its manifest names other files than it has"
    except (FileNotFoundError, NotADirectoryError):
        return "it does not exist or has no manifest"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder after checking it against its manifest.

    Raises:
        UserError: the folder is missing, torn or damaged.
    """
    reason = find_corruption(path)
    if reason is None:
        try:
            tensors = {file.stem: read_tensors(file)[0] for file in sorted(path.glob("*.safetensors"))}
            return Checkpoint(json.loads((path / STATE).read_text("utf-8")), tensors)
        except (OSError, SafetensorError) as error:  # it was changed in the meantime
            reason = first_line(error)
    raise UserError(f"the checkpoint {path} cannot be used: {reason}; resume from another one or from 'latest'.")


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest good checkpoint of a run, or None; a damaged one is passed over with a warning that names it."""
    for path in list_checkpoints(folder):
        reason = find_corruption(path)
        if reason is None:
            return load(path)
        warnings.warn(f"passing over the checkpoint {path.name}: {reason}.", stacklevel=2)
    return None


def describe_newest(folder: Path) -> str:
    """The newest good checkpoint of a run, for a sentence about a run that ended early."""
    newest = next((path.name for path in list_checkpoints(folder) if find_corruption(path) is None), None)
    if newest:
        return f"{newest} is the newest checkpoint"
    return "there is no checkpoint on this machine" if on_several_machines(os.environ) else "there is no checkpoint"
