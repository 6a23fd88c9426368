"""The output folder of a run: whether it can be written, and a lock against a second writer."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError
from ..files import check_writable
from ..hub.run_files import run_contents
from . import checkpoint
from .recipe import Recipe
from .snapshots import remove_snapshots_after

LOCK = ".lock"


def check_output_dir(folder: Path, resume_from: str | None) -> set[str]:
    """Check that this run may write into `folder`, and return its contents. Nothing is created.

    Args:
        resume_from: a checkpoint, "latest", or None for a run that begins.

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
    if contents and resume_from not in (None, "latest") and Path(resume_from).resolve().parent != folder.resolve():
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


def take_output_dir(recipe: Recipe, expected: set[str], first_step: int) -> BaseFileLock:
    """Lock the output folder, and clear away what would be in the way of the checkpoints of this run."""
    folder = Path(recipe.output_dir)
    lock = lock_output_dir(folder, expected)
    if recipe.resume_from_checkpoint not in (None, "latest"):
        checkpoint.set_aside_after(folder, first_step)
    checkpoint.tidy(folder, recipe.checkpoints_total_limit)
    remove_snapshots_after(folder, first_step)
    return lock
