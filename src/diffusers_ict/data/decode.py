"""Pictures into one array of bytes, on all cores, with a sentence for each picture that does not fit.

Threads share the work. Where there are many stored pictures, each thread has a process that converts them.
"""

import os
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from ..progress import progress_bar
from .originals import Originals, Size
from .picture_file import open_picture
from .picture_format import Converted, PictureFormat
from .source import Picture, Source
from .workers import Workers

CHUNK = 32  # pictures that a thread takes at once
Item = Picture | Converted | UserError
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


def decode(source: Source, form: PictureFormat, allocate: Allocate = in_memory, background: bool = False) -> Decoded:
    """Decode the pictures of a source on all cores that this process may use; a progress bar is shown if it takes long.

    Every picture is written to its place at once, so that no more memory is taken than `allocate` takes.

    Args:
        allocate: makes the array for the pixels from its shape.
        background: show no progress bar, and leave the cores to the other processes of the run on this machine.

    Raises:
        UserError: no pictures, one that cannot be read, pictures that do not agree in size or channels, or another
            number of them than the source says. Of several such pictures, the first one is named.
    """
    if source.count == 0:
        raise UserError("the data set holds no images; check its path and `image_column`.")
    items = _items(source, form)
    first = _converted(next(items), form, source, 0)
    height, width, channels = first.pixels.shape
    pixels = allocate((source.count, channels, height, width))

    def place(chunk: list[tuple[int, Item]]) -> Counter[tuple[Size, str]]:
        """Write pictures to their places; their sizes and modes."""
        found = Counter[tuple[Size, str]]()
        ready = workers.convert([item for _, item in chunk]) or (_converted(item, form, source, n) for n, item in chunk)
        for (number, _), picture in zip(chunk, ready, strict=True):
            array = picture.pixels.transpose(2, 0, 1)
            if array.shape != pixels.shape[1:]:
                raise UserError(_mismatch(pixels.shape[1:], array.shape, source.name_of(number)))
            pixels[number] = array
            found[picture.size, picture.mode] += 1
        return found

    sizes, modes = Counter[Size](), Counter[str]()
    shown = not background and os.environ.get("RANK", "0") == "0"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if background:
        threads = max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with (
        Workers(form, source.count, threads) as workers,
        progress_bar(source.count, "image", shown=shown, desc="decoding", delay=2) as progress,
    ):
        for found in _in_order(place, enumerate(chain([first], items)), threads):
            for (size, mode), number in found.items():
                sizes[size] += number
                modes[mode] += number
                progress.update(number)
    return Decoded(pixels, Originals.of(sizes, modes, width))


def _items(source: Source, form: PictureFormat) -> Iterator[Item]:
    """The pictures of a source, and an error in place of one that is missing, cannot be read, or is one too many.

    Files and arrays are left for the threads. What is in memory may change when the next picture is asked for, unless
    it is a part of one array: so other arrays are copied, and pictures of Pillow are converted at once.
    """
    iterator = iter(source.pictures)
    said = f"a source must hold as many pictures as its `count` says, {source.count}, and holds"
    for number in range(source.count):
        try:
            with _naming(source, number):
                picture = next(iterator, None)
            if picture is None:
                raise UserError(f"{said} {number}.")
            item: Item = picture
            if isinstance(picture, Image.Image):
                item = _converted(picture, form, source, number)
            elif isinstance(picture, np.ndarray) and picture.base is not source.pictures:
                item = picture.copy()
        except UserError as error:
            yield error
            return
        yield item
    if next(iterator, None) is not None:
        yield UserError(f"{said} more.")


def _converted(item: Item, form: PictureFormat, source: Source, number: int) -> Converted:
    if isinstance(item, Converted):
        return item
    if isinstance(item, UserError):
        raise item
    name = partial(source.name_of, number)  # looked up only for a message, because it may mean reading the row again
    with _naming(source, number):
        if isinstance(item, Path | bytes):
            with open_picture(item) as picture:
                return form.apply(picture, name)
        return form.apply(item, name)


def _in_order(
    work: Callable[[list[tuple[int, Item]]], Counter], numbered: Iterable[tuple[int, Item]], threads: int
) -> Iterator[Counter]:
    """What `work` makes of each chunk, in order, by threads that are no more than a few chunks ahead."""
    rest = iter(numbered)
    pool, pending = ThreadPoolExecutor(threads), deque[Future[Counter]]()
    try:
        while chunk := list(islice(rest, CHUNK)):
            pending.append(pool.submit(work, chunk))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _naming(source: Source, number: int) -> Iterator[None]:
    """Whatever a picture raises becomes one sentence with its name."""
    try:
        yield
    except UserError:
        raise
    except TOO_LARGE as error:
        reason, name = first_line(error).rstrip("."), source.name_of(number)
        raise UserError(f"the image {name} is too large ({reason}); make it smaller, or remove it.") from error
    except UNREADABLE as error:
        name = source.name_of(number)
        raise UserError(
            f"the image {name} cannot be read ({first_line(error)}); convert, replace or remove it."
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
