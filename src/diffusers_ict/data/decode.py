"""Pictures into bytes: colour modes, crops and sizes, with a sentence for each picture that does not fit."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .source import Source

MODES = ("L", "RGB", "RGBA")  # one, three and four channels


def decode(
    source: Source,
    resolution: int | None = None,
    center_crop: bool = False,
    mode: str | None = None,
    folder: str | None = None,
) -> Tensor:
    """Pictures of any size -> uint8 [n, C, resolution, resolution].

    Every image is written to its place at once, so that no more memory is taken than the result needs, and none of it
    with a folder for the result to be mapped from.

    Raises:
        UserError: no pictures, one that cannot be read, or pictures that do not agree in size or channels.
    """
    pixels: np.ndarray | None = None
    iterator = iter(source.pictures)
    for number in range(source.count):

        def name(number: int = number) -> str:
            """Of the picture at hand; looked up only for a message, because it may mean reading the row again."""
            return source.name_of(number)

        try:
            array = _as_array(next(iterator), name, resolution, center_crop, mode).transpose(2, 0, 1)
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"the image {name()} cannot be read ({error}); remove or replace the file.") from error
        if pixels is None:
            pixels = _allocate((source.count, *array.shape), folder)
        elif array.shape != pixels.shape[1:]:
            raise UserError(_mismatch(pixels.shape[1:], array.shape, name()))
        pixels[number] = array
    if pixels is None:
        raise UserError("the data set holds no images; check its path and `image_column`.")
    return torch.from_numpy(pixels)


def _allocate(shape: tuple[int, ...], folder: str | None) -> np.ndarray:
    """Room for bytes in memory, or in a file in `folder` that disappears after its last use.

    Raises:
        UserError: the folder cannot be written, or has no room.
    """
    if folder is None:
        return np.empty(shape, np.uint8)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk must be an error now, not a signal later
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise UserError(f"`image_cache_dir` {folder} cannot hold the images: {error.strerror or error}.") from error


def _as_array(
    picture, name: Callable[[], str], resolution: int | None, center_crop: bool, mode: str | None
) -> np.ndarray:
    """One picture as uint8 [side, side, C]."""
    if isinstance(picture, np.ndarray) and mode is None:
        height, width = picture.shape[:2]
        if height == width == (resolution or height):  # nothing to resize: any number of channels will do
            return picture.reshape(height, width, -1)
    array = np.asarray(_square(_as_pil(picture, mode), name, resolution, center_crop))
    return array.reshape(*array.shape[:2], -1)


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


def _as_pil(picture: Image.Image | np.ndarray, mode: str | None) -> Image.Image:
    """A PIL image in mode L, RGB or RGBA. Palettes are decoded to what they stand for."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    picture.load()
    if mode:
        return picture.convert(mode)
    if picture.mode == "P":
        return picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode not in MODES:
        raise ValueError(f"its mode {picture.mode} is not one of {', '.join(MODES)}: convert with `image_mode`")
    return picture


def _square(picture: Image.Image, name: Callable[[], str], resolution: int | None, center_crop: bool) -> Image.Image:
    """Crop to a square and resize with antialiasing."""
    width, height = picture.size
    if width != height:
        if not center_crop:
            raise UserError(
                f"images must be square, and {name()} is {width}x{height}: add `center_crop` to cut out the middle."
            )
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if resolution is not None and picture.width != resolution:
        picture = picture.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return picture
