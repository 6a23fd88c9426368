"""A source of pictures: the common form of folders, files and Hub data sets. A new kind of source is one new file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Picture = Image.Image | np.ndarray | Path | bytes


def numbered(index: int) -> str:
    """A picture's name where the source has none."""
    return f"number {index}"


@dataclass(frozen=True)
class Source:
    """Pictures to be decoded into `Images`.

    Attributes:
        pictures: files, as paths or as their content, which are read on all cores; or PIL images or arrays [H, W] or
            [H, W, C] of uint8, uint16 or floats from 0 to 1, each of which is done with when the next is asked for. An
            iterator that raises OSError, SyntaxError or ValueError stands for a picture that cannot be read.
        count: how many there are; another number of pictures is refused.
        labels: an integer for each picture, or None.
        class_names: a name for each class, or None.
        name_of: a picture's name by its index, for messages.
        identity: everything that determines the pictures, as JSON types; decoded images are kept in files under this
            identity. Without it, they are never kept.
    """

    pictures: Iterable[Picture]
    count: int
    labels: Sequence[int] | np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    name_of: Callable[[int], str] = numbered
    identity: Callable[[], Any] | None = None
