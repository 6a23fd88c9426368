"""The output folder of a run: whether it can be written, and a lock against a second writer."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError
from ..files import check_writable

LOCK = ".lock"


def holds_a_run(folder: Path) -> bool:
    """Whether a folder holds more than what a run leaves that is killed at its very start."""
    return folder.is_dir() and any(path.name != LOCK and path.suffix != ".tmp" for path in folder.iterdir())


def check_output_dir(folder: Path, resuming: bool) -> None:
    """Check that this run may write into `folder`. Nothing is created.

    Raises:
        UserError: it holds another run, or cannot be a folder that this process writes to.
    """
    check_writable("output_dir", folder)
    if not resuming and holds_a_run(folder):
        raise UserError(
            f"`output_dir` {folder} holds another run: add `resume_from_checkpoint` latest to continue it, or name "
            "another folder."
        )


def lock_output_dir(folder: Path) -> BaseFileLock:
    """Make the folder this run's own, until the lock is released or the process ends, however it ends.

    Raises:
        UserError: another run writes to it.
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
    return own
