"""Decoded pixels in files, so that the next run maps them instead of decoding the pictures again."""

import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import PIL

from ..errors import UserError
from ..files import write_json
from .decode import Allocate, Decoded
from .originals import Originals
from .picture_format import PictureFormat

LAYOUT = 2  # to be raised when the same pictures are decoded to other bytes than before
BLOCK = 1 << 18  # bytes read at once


def cache_key(identity: Any, form: PictureFormat) -> str:
    """A name for the pixels of the pictures with this identity, in this form: 32 hexadecimal digits.

    Pillow is part of it, because its versions decode and resize in slightly different ways.
    """
    facts = [LAYOUT, PIL.__version__, identity, asdict(form)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def state_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the path, size and time of modification of every file; a missing one counts as missing."""
    found = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            state = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:
            state = f"{path}\0missing\n"
        found.update(os.fsencode(state))
    return found.hexdigest()


def cached(folder: Path, key: str, make: Callable[[Allocate], Decoded]) -> Decoded:
    """The pixels that `folder` keeps under `key`, mapped read-only; they are made and kept if they are not there.

    A file that is not as it was written is passed over with a warning and made again. Runs that make the same pixels
    at once write to folders of their own, and the first that is ready keeps its file.

    Args:
        make: decodes the pictures into an array; it is given what allocates the array.

    Raises:
        UserError: the folder cannot be written, or has no room; and whatever `make` raises.
    """
    file, facts = folder / f"images-{key}.bin", folder / f"images-{key}.json"
    if found := _load(file, facts):
        return found
    if file.exists() and facts.exists():
        warnings.warn(
            f"the file {file.name} in `image_cache_dir` is not as it was written, so the images are decoded again.",
            stacklevel=2,
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".images-", ignore_cleanup_errors=True) as own:
            new, new_facts = Path(own) / file.name, Path(own) / facts.name
            made = _finish(make(partial(_in_new_file, new)), new, new_facts)
            if found := _load(file, facts):  # another run was faster
                return found
            new.replace(file)
            new_facts.replace(facts)
            return made
    except OSError as error:
        raise _no_room(folder, error) from error


def _load(file: Path, facts: Path) -> Decoded | None:
    """The pixels of a file, or None where it is missing or not as the facts beside it say."""
    try:
        said = json.loads(facts.read_text(encoding="utf-8"))
        shape = tuple(int(size) for size in said["shape"])
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size != math.prod(shape) or (digest := _digest(opened)) != said["sha256"]:
                return None
            pixels = np.memmap(opened, np.uint8, "r", shape=shape)
        return Decoded(pixels, Originals.from_json(said["originals"]), digest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finish(decoded: Decoded, file: Path, facts: Path) -> Decoded:
    """Write the facts about the pixels that lie in `file`, and map them read-only."""
    cast(np.memmap, decoded.pixels).flush()
    shape = decoded.pixels.shape
    with file.open("rb") as opened:
        digest = _digest(opened)
        write_json(facts, {"shape": list(shape), "sha256": digest, "originals": asdict(decoded.originals)})
        return replace(decoded, pixels=np.memmap(opened, np.uint8, "r", shape=shape), sha256=digest)


def _digest(file: BinaryIO) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    while block := file.read(BLOCK):
        found.update(block)
    return found.hexdigest()


def in_temporary_file(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Room for bytes in a file in `folder` that disappears after its last use.

    Raises:
        UserError: the folder cannot be written, or has no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            return _reserve(file, shape)
    except OSError as error:
        raise _no_room(folder, error) from error


def _in_new_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with path.open("xb+") as file:
        return _reserve(file, shape)


def _reserve(file: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes in an empty file."""
    if hasattr(os, "posix_fallocate"):  # a full disk must be an error now, not a signal later
        os.posix_fallocate(file.fileno(), 0, math.prod(shape))
    return np.memmap(file, np.uint8, "w+", shape=shape)


def _no_room(folder: Path, error: OSError) -> UserError:
    return UserError(f"`image_cache_dir` {folder} cannot hold the images: {error.strerror or error}.")
