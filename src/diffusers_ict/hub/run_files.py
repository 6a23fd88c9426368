"""The files of a model's folder: who writes them, and which of them are published."""

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, first_line
from ..files import read_text
from ..names import LONGEST, visible

WRITTEN_BY_RUNS = (
    *("recipe.yaml", "run.json", "log.jsonl", "training.png", "samples", "labels.json", "README.md", "pipeline.py"),
    *("normalization.json",),
    *("model_index.json", "unet", "scheduler", "vqvae", "discriminator"),
)
WRITTEN_LATER = ("conversion.json", "evaluation.json", "evaluation.png", "inspection.json")
WRITTEN_TO_PUBLISH = ("blocks.py", "modular_config.json")  # where `publish --modular` was asked for
AVERAGES = "averages"  # folder of the snapshots of averages
NOT_PUBLISHED = ("checkpoint-*", AVERAGES)  # of a run, too; what it goes on from
CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # a training checkpoint after so many steps
SNAPSHOT = re.compile(r"step-(\d+)\.safetensors")
# Of transformers' meanings of `hub_strategy`, those that upload training checkpoints, and which.
OF_STRATEGY = {"checkpoint": "newest", "all_checkpoints": "all"}
MANIFEST, STATE = "manifest.json", "state.json"  # of a training checkpoint


def run_contents(folder: Path) -> set[str]:
    """The names in a folder that a run may have written; not the lock, nor files of others."""
    return {path.name for pattern in (*WRITTEN_BY_RUNS, *NOT_PUBLISHED) for path in folder.glob(pattern)}


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    if not folder.is_dir():
        return []
    steps = {p: int(match[1]) for p in folder.iterdir() if p.is_dir() and (match := CHECKPOINT.fullmatch(p.name))}
    return sorted(steps, key=lambda p: -steps[p])


def list_snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots of averages of a run by their steps, in order."""
    found = {int(match[1]): path for path in (folder / AVERAGES).glob("*") if (match := SNAPSHOT.fullmatch(path.name))}
    return dict(sorted(found.items()))


def published_files(folder: Path) -> dict[str, Path]:
    """The files of a run or a conversion that are published, by their paths within the repository.

    Raises:
        UserError: one is a link to what lies elsewhere, which nobody meant to publish.
    """
    paths, place = [folder / name for name in (*WRITTEN_BY_RUNS, *WRITTEN_LATER, *WRITTEN_TO_PUBLISH)], folder.resolve()
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    for file in files:
        if not file.resolve().is_relative_to(place):
            raise UserError(
                f"{visible(str(file), LONGEST)} is a link that leads out of {folder}, and what it leads to is not "
                "published: put the file itself in its place, or remove the link."
            )
    return {file.relative_to(folder).as_posix(): file for file in files}


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of a run, or nothing where there is none; a UserError where it cannot be read."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read as YAML: {first_line(error)}.") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path} must hold a YAML mapping, and holds a {type(recipe).__name__}.")
    return recipe
