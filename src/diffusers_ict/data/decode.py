"""Pictures into one array of bytes, with a sentence for each picture that does not fit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import UserError
from .picture_format import PictureFormat
from .source import Source

Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """The decoded pictures of a source.

    Attributes:
        pixels: uint8 [n, C, H, W].
        enlarged: how many pictures were smaller than the resolution; smallest: the least side of these in pixels, or 0.
        sha256: of the bytes of `pixels`, where it is known.
    """

    pixels: np.ndarray
    enlarged: int = 0
    smallest: int = 0
    sha256: str | None = None


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Room for bytes in memory."""
    return np.empty(shape, np.uint8)


def decode(source: Source, form: PictureFormat, allocate: Allocate = in_memory) -> Decoded:
    """Decode the pictures of a source.

    Every picture is written to its place at once, so that no more memory is taken than `allocate` takes.

    Args:
        allocate: makes the array for the pixels from its shape.

    Raises:
        UserError: no pictures, one that cannot be read, or pictures that do not agree in size or channels.
    """
    pixels: np.ndarray | None = None
    small: list[int] = []
    iterator = iter(source.pictures)
    for number in range(source.count):
        # Looked up only for a message, because it may mean reading the row again.
        name = partial(source.name_of, number)
        try:
            array, side = form.apply(next(iterator), name)
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"the image {name()} cannot be read ({error}); remove or replace the file.") from error
        array = array.transpose(2, 0, 1)
        if pixels is None:
            pixels = allocate((source.count, *array.shape))
        elif array.shape != pixels.shape[1:]:
            raise UserError(_mismatch(pixels.shape[1:], array.shape, name()))
        pixels[number] = array
        if side < array.shape[-1]:
            small.append(side)
    if pixels is None:
        raise UserError("the data set holds no images; check its path and `image_column`.")
    return Decoded(pixels, len(small), min(small, default=0))


def _mismatch(first: tuple[int, ...], other: tuple[int, ...], name: str) -> str:
    """Of shapes [C, H, W]."""
    if first[0] != other[0]:
        return (
            f"all images must have the same number of channels: the first has {first[0]} and {name} has {other[0]}; "
            "convert them with `image_mode` L, RGB or RGBA."
        )
    return (
        f"all images must have the same size: the first is {first[2]}x{first[1]} and {name} is {other[2]}x{other[1]}; "
        "give `resolution`."
    )
