"""Files and folders that are written atomically, files that are read with a sentence for damage, and portable names.

A reader of what is written atomically sees the old content or the new, never half of either.
"""

import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .credentials import scrubbed
from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = re.compile(r"\..+\.[0-9a-f]+(-\d+-[0-9a-f]+)?\.tmp")
LEFT_FOR = 86_400.0  # seconds after which nobody writes a temporary file any more
FILE_SUFFIXES = (".npz", ".parquet", ".arrow", ".pt", ".pth", ".ckpt")


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A random name beside `path`. It is free again when the block ends, and folders made in vain go.

    What others have left of the same `path` is removed first: processes of this machine that are gone, and anybody a
    day ago.
    """
    made = [parent for parent in path.parents if not parent.exists()]  # the deepest comes first
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name[:40]}"  # with what follows it must not be too long for a name
    for left in path.parent.glob(f"{glob.escape(stem)}.*.tmp"):
        with suppress(OSError):  # its writer has just renamed it
            if _is_left(left):
                _remove(left)
    temporary = path.with_name(f"{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    finally:
        _remove(temporary)
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


@cache
def _machine() -> str:
    """What tells machines and containers apart that share a disk: process numbers mean nothing beyond them."""
    namespace = Path("/proc/self/ns/pid")  # of Linux
    known = f"{platform.node()} {os.readlink(namespace) if namespace.exists() else ''}"
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def _is_left(path: Path) -> bool:
    """Whether nobody writes a temporary file or folder any more."""
    import psutil  # sampling, which writes nothing, needs no extra

    machine, *process = path.suffixes[-2][1:].split("-")
    gone = machine == _machine() and process and not psutil.pid_exists(int(process[0]))
    return gone or path.stat().st_mtime < time.time() - LEFT_FOR


def remove_left(folder: Path) -> None:
    """Remove temporary files and folders of writers that are gone, anywhere in a folder."""
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):  # its writer has just renamed it
            if TEMPORARY.fullmatch(path.name) and _is_left(path):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Put a file or folder on disk. Windows cannot open folders, and need not."""
    if not (path.is_dir() and os.name == "nt"):
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, removed when the block ends. What it holds can be renamed into its place."""
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces it when the block ends without an error. Makes its folders."""
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`, which replaces it when the block ends without an error. Makes its parents.

    Args:
        fsync: put the content on disk before the name, so that a power failure leaves no torn folder.
    """
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        if fsync:
            for part in (*temporary.rglob("*"), temporary):
                _flush(part)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        if fsync:
            _flush(path.parent)


@contextmanager
def staged_folder(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder whose files replace those of `folder`, one by one, when the block ends without an error.

    Other files of `folder` stay. A reader finds whole files at any moment.

    Args:
        last: name of the file that completes the folder; it comes last.
    """
    with _temporary(folder / last) as temporary:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*"), key=lambda path: path.name == last):
            if file.is_file():
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)


def check_writable(setting: str, folder: Path) -> None:
    """Check that files can be written into the folder that a setting names; it need not exist. Nothing is created.

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


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_text(path: Path, name: str | None = None) -> str:
    """The content of a text file, which messages call `name`, by default its path.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        where = f"{name or path} must be text in UTF-8, and has other bytes at {error.start}"
        raise UserError(f"{where}; mend it.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        UserError: it does not hold a JSON object.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:  # RecursionError of brackets that are nested too deep
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(content).__name__}.")
    return content


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors of a safetensors file in memory, and its metadata.

    Not by the readers of files that the library has: their tensors lie in the mapped file, and a file that is cut off
    while they are used ends the process by SIGBUS.

    Raises:
        OSError, safetensors.SafetensorError: it cannot be read, or is damaged.
    """
    from safetensors.torch import load

    content = path.read_bytes()
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def portable(word: str) -> str:
    """A word without the folders of this machine, the last part of an absolute path, and without credentials.

    The path may be the value of --flag=PATH or NAME=PATH, or the address file://PATH.
    """
    name, equals, value = word.partition("=")
    if equals and re.fullmatch(r"-*\w+", name):
        return f"{name}={portable(value)}"
    path = Path(word.removeprefix("file://"))
    return scrubbed(path.name if path.is_absolute() else word)


def public_name(source: str) -> tuple[str, bool]:
    """(name of a file, folder or Hub repository without its folders, whether it is on the Hub)."""
    local = Path(source).exists() or Path(source).suffix in FILE_SUFFIXES
    return scrubbed(Path(source).name if local else source), not local
