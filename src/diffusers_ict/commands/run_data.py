"""The data flags of a model's own run, which stand in its folder and hold unless others are given."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.settings import DataSettings
from ..errors import UserError
from ..hub.metadata import RunMetadata
from ..hub.run_files import read_recipe
from ..names import shell, visible
from ..settings import ArgumentParser, as_flag, check_bounds
from ..training.recipe import OF_THE_DATA

SOURCES = ("dataset_name", "train_data_dir")
OF_THIS_MACHINE = "image_cache_dir"  # a recipe that others wrote does not choose where we write


def with_run_flags(parser: ArgumentParser, words: Sequence[str], kind: type) -> tuple[argparse.Namespace, Any]:
    """Parse words, in front of which the data flags of the run in the folder `model` are put, and print those.

    Args:
        parser: has the argument `model`, and flags for all or some data settings; kind: the dataclass of the settings.

    Returns:
        (the other arguments, the settings).

    Raises:
        UserError: bad words, a recipe that cannot be read, or images that are no longer where they were.
    """
    given = vars(parser.parse_args(words))
    flags = _run_flags(parser, given)
    if flags and os.environ.get("RANK", "0") == "0":
        print(f"As in the run of {visible(given['model'])}: {shell(flags)}", flush=True)
    options = vars(parser.parse_args([*flags, *words]))
    names = [item.name for item in dataclasses.fields(kind) if item.name in options]
    settings = kind(**{name: options.pop(name) for name in names})
    check_bounds(settings)
    return argparse.Namespace(**options), settings


def _run_flags(parser: ArgumentParser, given: dict[str, Any]) -> list[str]:
    """Settings of the run whose folder `model` is, as words of a command line; none where it is no such folder."""
    folder, plain = Path(given["model"]), vars(DataSettings())
    recipe = read_recipe(folder)
    known = {action.dest for action in parser._actions} & recipe.keys()
    left_out = {*given, OF_THIS_MACHINE, *(OF_THE_DATA if given.keys() & {*SOURCES, "reference"} else ())}
    chosen = {name: recipe[name] for name in plain if name in known - left_out and recipe[name] != plain[name]}
    source = next((chosen[name] for name in SOURCES if name in chosen), None)
    if source is not None and not _on_the_hub(folder) and not Path(str(source)).exists():
        raise UserError(
            f"the images of this run, {source}, are not where you are: give `train_data_dir` or `dataset_name`."
        )
    if source is not None and "image_mode" in known - left_out and _channels(folder) == 4:
        chosen["image_mode"] = "RGBA"  # which the run was warned of, and nobody else has to be
    return [word for name, value in chosen.items() for word in as_flag(name, value)]


def _channels(folder: Path) -> int | None:
    return RunMetadata.read(folder).shape[0] if (folder / RunMetadata.file_name).is_file() else None


def _on_the_hub(folder: Path) -> bool:
    return (folder / RunMetadata.file_name).is_file() and RunMetadata.read(folder).dataset_on_hub
