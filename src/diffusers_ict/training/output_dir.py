"""The output folder of a run: whether it can be written, and a lock against a second writer."""

from pathlib import Path

import yaml
from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError
from ..files import check_writable, write_text
from ..hub.run_files import run_contents
from . import checkpoint
from .recipe import Recipe
from .run_settings import FROM_HUB, LATEST
from .snapshots import remove_snapshots_after

LOCK = ".lock"


def check_output_dir(folder: Path, resume_from: str | None) -> set[str]:
    """Check that this run may write into `folder`, and return its contents. Nothing is created.

    Args:
        resume_from: a checkpoint, "latest", "hub", or None for a run that begins.

    Raises:
        UserError: it holds another run, or cannot be a folder that this process writes to.
    """
    check_writable("output_dir", folder)
    contents = run_contents(folder)
    if contents and resume_from is None:
        raise UserError(
            f"`output_dir` {folder} holds another run: add `resume_from_checkpoint` latest to continue it, or name "
            "another folder."
        )
    named = None if resume_from in (None, LATEST, FROM_HUB) else Path(str(resume_from))
    if contents and named is not None and named.resolve().parent != folder.resolve():
        raise UserError(
            f"`output_dir` {folder} holds another run than that of `resume_from_checkpoint` {resume_from}: name "
            "another folder, or a checkpoint of this one."
        )
    return contents


def lock_output_dir(folder: Path, expected: set[str]) -> BaseFileLock:
    """Make the folder this run's own, until the lock is released or the process ends, however it ends.

    Args:
        expected: its contents when it was checked.

    Raises:
        UserError: another run writes to it, or has written since.
    """
    own = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"`output_dir` {folder} is in use by another run: wait until it ends, or name another folder."
        ) from error
    except OSError as error:
        raise UserError(f"`output_dir` {folder} cannot be written: {error.strerror}; name another folder.") from error
    if run_contents(folder) != expected:
        own.release()
        raise UserError(f"`output_dir` {folder} was written to by another run meanwhile: start this one again.")
    return own


def take_output_dir(recipe: Recipe, expected: set[str], first_step: int, arrived: Path | None = None) -> BaseFileLock:
    """Lock the output folder, put in what came from the Hub, and clear away what would be in the way of this run.

    Args:
        arrived: folder of what came from the Hub, on the same disk, or None.
    """
    folder = Path(recipe.output_dir)
    lock = lock_output_dir(folder, expected)
    if arrived is not None:
        write_recipe(recipe)  # if this ends in the middle, the folder is known to be of this run
        _put_in(arrived, folder)
    if recipe.resume_from_checkpoint not in (None, LATEST):
        checkpoint.set_aside_after(folder, first_step)
    checkpoint.tidy(folder, recipe.checkpoints_total_limit)
    remove_snapshots_after(folder, first_step)
    return lock


def write_recipe(recipe: Recipe) -> None:
    """Write a recipe into its output folder."""
    write_text(Path(recipe.output_dir) / "recipe.yaml", yaml.safe_dump(recipe.as_dict(), sort_keys=False))


def _put_in(arrived: Path, folder: Path) -> None:
    """Move files into a run's folder, the checkpoint last: without it, a run would not go on from them."""
    (saved,) = checkpoint.list_checkpoints(arrived)
    for file in sorted(path for path in arrived.rglob("*") if path.is_file() and saved not in path.parents):
        target = folder / file.relative_to(arrived)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    checkpoint.set_aside(folder / saved.name)
    saved.rename(folder / saved.name)
