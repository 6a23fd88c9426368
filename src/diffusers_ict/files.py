"""Files that are written atomically or read with a sentence for damage, and names of files as they may be written down.

A reader of an atomically written file sees the old content or the new, never half of either.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError

FILE_SUFFIXES = (".npz", ".parquet", ".arrow", ".pt", ".pth", ".ckpt")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Folders are created. The name is the process's own, so that two processes never write to the same temporary file.
    Those of processes that were killed are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _is_gone(left.suffixes[-2]):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(setting: str, folder: Path) -> None:
    """Check that files can be written into a folder, which need not exist yet. Nothing is created.

    Args:
        setting: the name of the setting that names the folder.

    Raises:
        UserError: it is a file or within one, or it is read-only.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"`{setting}` {folder} cannot be used: {error.strerror}; name another folder.") from error
    if not existing.is_dir():
        raise UserError(f"`{setting}` must be a folder, and {existing} is a file; name another one.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"`{setting}` {folder} cannot be written: {existing} is read-only; name another folder.")


def _is_gone(suffix: str) -> bool:
    """Whether the process of a temporary file is known to have ended. Windows cannot be asked without harm."""
    if os.name == "nt" or not suffix[1:].isdecimal():
        return False
    try:
        os.kill(int(suffix[1:]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


@contextmanager
def staged_folder(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder in `folder`, whose files take their places there, one by one, when the block ends well.

    Whoever reads `folder`, at whatever moment, finds whole files, each the old one or the new one.

    Args:
        last: name of the file that makes the folder complete; it comes last.
    """
    temporary = folder / ".staged.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*"), key=lambda path: path.name == last):
            if file.is_file():
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_text(path: Path, name: str | None = None) -> str:
    """The content of a text file.

    Args:
        name: what messages call it, by default its path.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name or path} must be text in UTF-8, and has other bytes at {error.start}; mend it."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        UserError: it does not hold a JSON object.
    """
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(found).__name__}.")
    return found


def portable(word: str) -> str:
    """A word as it may be written down: of an absolute path the last part, anything else as it is."""
    return Path(word).name if Path(word).is_absolute() else word


def public_name(source: str) -> tuple[str, bool]:
    """(name of a file, folder or Hub repository without its folders, whether it is on the Hub)."""
    local = Path(source).exists() or Path(source).suffix in FILE_SUFFIXES
    return (Path(source).name if local else source), not local
