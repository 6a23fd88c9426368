"""Decoded pixels in files."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError


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


def _reserve(file: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes in an empty file."""
    if hasattr(os, "posix_fallocate"):  # a full disk must be an error now, not a signal later
        os.posix_fallocate(file.fileno(), 0, math.prod(shape))
    return np.memmap(file, np.uint8, "w+", shape=shape)


def _no_room(folder: Path, error: OSError) -> UserError:
    return UserError(f"`image_cache_dir` {folder} cannot hold the images: {error.strerror or error}.")
