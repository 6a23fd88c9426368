"""Pictures into one array of bytes, with a sentence for each picture that does not fit."""

import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from .originals import Originals, Size
from .picture_format import Converted, PictureFormat
from .source import Source

Allocate = Callable[[tuple[int, ...]], np.ndarray]
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow raises on damaged files of one format or another.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError),
    *(MemoryError, OverflowError, struct.error, zlib.error),
)


@dataclass(frozen=True)
class Decoded:
    """The decoded pictures of a source.

    Attributes:
        pixels: uint8 [n, C, H, W].
        originals: what the pictures were before.
        sha256: of the bytes of `pixels`, where it is known.
    """

    pixels: np.ndarray
    originals: Originals
    sha256: str | None = None


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Room for bytes in memory.

    Raises:
        UserError: there is not enough.
    """
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(
            f"{shape[0]} images of {shape[3]}x{shape[2]} do not fit into memory: lower `resolution`, or give "
            "`image_cache_dir`."
        ) from error


def decode(source: Source, form: PictureFormat, allocate: Allocate = in_memory) -> Decoded:
    """Decode the pictures of a source.

    Every picture is written to its place at once, so that no more memory is taken than `allocate` takes.

    Args:
        allocate: makes the array for the pixels from its shape.

    Raises:
        UserError: no pictures, one that cannot be read, pictures that do not agree in size or channels, or another
            number of them than the source says.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decode(source, form, allocate)


def _decode(source: Source, form: PictureFormat, allocate: Allocate) -> Decoded:
    pixels: np.ndarray | None = None
    sizes, modes = Counter[Size](), Counter[str]()
    iterator = iter(source.pictures)
    for number in range(source.count):
        array, size, mode = _next(iterator, form, source, number)
        array = array.transpose(2, 0, 1)
        if pixels is None:
            pixels = allocate((source.count, *array.shape))
        elif array.shape != pixels.shape[1:]:
            raise UserError(_mismatch(pixels.shape[1:], array.shape, source.name_of(number)))
        pixels[number] = array
        sizes[size] += 1
        modes[mode] += 1
    if pixels is None:
        raise UserError("the data set holds no images; check its path and `image_column`.")
    if next(iterator, None) is not None:
        raise UserError(f"a source must hold as many pictures as its `count` says, {source.count}, and holds more.")
    return Decoded(pixels, Originals.of(sizes, modes, pixels.shape[-1]))


def _next(iterator: Iterator[Image.Image | np.ndarray], form: PictureFormat, source: Source, number: int) -> Converted:
    """The next picture, converted."""
    name = partial(source.name_of, number)  # looked up only for a message, because it may mean reading the row again
    try:
        return form.apply(next(iterator), name)
    except StopIteration:
        raise UserError(
            f"a source must hold as many pictures as its `count` says, {source.count}, and holds {number}."
        ) from None
    except UserError:
        raise
    except TOO_LARGE as error:
        reason = first_line(error).rstrip(".")
        raise UserError(f"the image {name()} is too large ({reason}); make it smaller, or remove it.") from error
    except UNREADABLE as error:
        raise UserError(
            f"the image {name()} cannot be read ({first_line(error)}); convert, replace or remove it."
        ) from error


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
