"""What programs write is never read as data: its folders lie outside of those of the images."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from .settings import DataSettings

# Files that only a run, a conversion, an evaluation or an inspection writes; pictures lie beside each of them.
WRITTEN = ("run.json", "recipe.yaml", "model_index.json", "evaluation.json", "inspection.json")


def check_apart(settings: DataSettings, setting: str, place: str | os.PathLike) -> None:
    """Check that the folder which a setting names lies outside of the data, also by way of links.

    Raises:
        UserError: it is the folder of the data, or lies within it or within a folder that a link in it leads to.
    """
    top = Path(settings.data_name)
    if not settings.data_name or not top.is_dir():
        return
    written = Path(os.path.realpath(Path(place).expanduser()))
    above = {_identity(folder) for folder in (written, *written.parents) if folder.is_dir()}
    seen = set[tuple[int, int]]()
    for name, folders, _ in os.walk(top, followlinks=True):
        identity = _identity(name)
        if identity in above:
            data = "train_data_dir" if settings.train_data_dir else "dataset_name"
            raise UserError(
                f"`{setting}` must lie outside of the data, or what is written there would be read as data: got "
                f"{place}, and `{data}` {settings.data_name}; name another folder."
            )
        if identity in seen:  # a link leads back; who reads the data refuses it
            folders.clear()
        seen.add(identity)


def check_not_written(top: Path, folders: Iterable[Path]) -> None:
    """Check that no picture lies where programs of this package write: `folders` within `top`, which hold pictures.

    Raises:
        UserError: one does.
    """
    between = {place for folder in folders for place in (folder, *folder.parents) if place.is_relative_to(top)}
    if written := sorted(place / name for place in between for name in WRITTEN if (place / name).is_file()):
        raise UserError(
            f"a folder of images must not hold what a run or a model has written, and {written[0].parent} holds "
            f"{written[0].name}: its pictures would be read as data; move that folder out, or name another one."
        )


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    """What two paths of the same folder have in common, however they are spelt."""
    state = os.stat(folder)
    return state.st_dev, state.st_ino
