"""One picture into bytes: upright, 8 bits, one colour mode, square, one size; and bytes into what networks see."""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from ..errors import UserError, first_line

MODES = ("L", "RGB", "RGBA")  # one, three and four channels
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112  # the EXIF tag
BITS, WHITE_IS_ZERO = 258, 262  # TIFF tags; the second one is 0 where white is 0
SCALED = ("PNG", "PPM")  # Pillow reads 16 bits of these formats as integers of 32 bits
COMMON = ("PNG", "JPEG", "WEBP")  # tried first, which saves time: their first bytes fit no other format
# Pillow knows them by their first bytes, and has no decoder of its own for them.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow raises on damaged files of one format or another.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError),
    *(MemoryError, OverflowError, struct.error, zlib.error),
)


def to_unit(pixels: Tensor, flips: Tensor | None, device: torch.device | str) -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [-1, 1] on `device`; floats stay as they are. Those in `flips` are mirrored."""
    x = pixels.to(device)
    if not x.is_floating_point():
        x = x.float() / 127.5 - 1
    return x if flips is None else torch.where(flips.to(device)[:, None, None, None], x.flip(-1), x)


class Converted(NamedTuple):
    """A picture as uint8 [C, side, side], and the width and height and mode, or type, that it had before."""

    pixels: np.ndarray
    size: tuple[int, int]
    mode: str


@dataclass(frozen=True)
class PictureFormat:
    """The form that every picture of a data set is converted to.

    Attributes:
        resolution: side in pixels, or None for the picture's own.
        center_crop: cut the largest central square out of a picture that is not square.
        mode: "L", "RGB" or "RGBA", or None for the picture's own.
        background: colour behind transparent pixels where `mode` has no alpha, as `PIL.ImageColor` understands it.

    Raises:
        UserError: a mode or a colour that does not exist.
    """

    resolution: int | None = None
    center_crop: bool = False
    mode: str | None = None
    background: str = "white"

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise UserError(f"`image_mode` must be one of {', '.join(MODES)}, got {self.mode}.")
        try:
            colour: tuple[int, ...] = ImageColor.getrgb(self.background)
        except ValueError:
            colour = ()
        if len(colour) != 3:
            raise UserError(f"`background` must be the name of a colour, or #rrggbb, got {self.background}.")

    def convert(self, stored: Any, name: Callable[[], str]) -> Converted:
        """Convert a stored picture: {"bytes", "path"} as `datasets.Image` stores it, bytes, or an array of pixels.

        An array of the right size keeps its channels, however many they are, where `mode` is None.

        Args:
            name: the picture's name for messages.

        Raises:
            UserError: it cannot be read or converted, or is not square, without `center_crop`.
        """
        try:
            if isinstance(stored, np.ndarray):
                return self._from_array(stored, name)
            with open_picture(stored) as picture:
                picture.load()
                return self._from_picture(_upright(picture), picture.mode, name)
        except UserError:
            raise
        except TOO_LARGE as error:
            reason = first_line(error).rstrip(".")
            raise UserError(f"the image {name()} is too large ({reason}); make it smaller, or remove it.") from error
        except UNREADABLE as error:
            reason = first_line(error)
            raise UserError(f"the image {name()} cannot be read ({reason}); convert, replace or remove it.") from error

    def _from_array(self, values: np.ndarray, name: Callable[[], str]) -> Converted:
        if values.ndim not in (2, 3) or values.size == 0:
            raise ValueError(f"it is an array {list(values.shape)} and must be [H, W] or [H, W, C], with pixels")
        array = as_bytes(values).reshape(*values.shape[:2], -1)
        height, width, channels = array.shape
        if self.mode is None and height == width == (self.resolution or height):
            return Converted(array.transpose(2, 0, 1), (width, height), str(values.dtype))
        if channels not in (1, 3, 4):
            raise ValueError(f"it has {channels} channels, and only 1, 3 or 4 can be resized, cropped or converted")
        picture = Image.fromarray(array.squeeze(-1) if channels == 1 else array)
        return self._from_picture(picture, str(values.dtype), name)

    def _from_picture(self, upright: Image.Image, mode: str, name: Callable[[], str]) -> Converted:
        """`mode`: that the picture had before it was turned upright and brought to 8 bits."""
        square = self._square(self._in_mode(upright), name)
        if self.resolution is not None and square.width != self.resolution:
            square = square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        array = np.asarray(square)
        return Converted(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1), upright.size, mode)

    def _in_mode(self, picture: Image.Image) -> Image.Image:
        """A picture in mode L, RGB or RGBA; by default in the one that loses nothing."""
        transparent = picture.mode in WITH_ALPHA or "transparency" in picture.info
        colour = picture.info.get("transparency")
        if isinstance(colour, tuple) and max(colour) > 255:  # Pillow would look for it among colours of 8 bits
            raise ValueError("its transparent colour has 16 bits: save it with an alpha channel")
        if self.mode is not None:
            if transparent and self.mode != "RGBA":
                canvas = Image.new("RGBA", picture.size, self.background)
                canvas.alpha_composite(picture.convert("RGBA"))
                picture = canvas
            return picture.convert(self.mode)
        lossless = "RGBA" if transparent else {"P": "RGB", "1": "L"}.get(picture.mode, picture.mode)
        if lossless not in MODES:
            raise ValueError(f"its mode {picture.mode} is not one of {', '.join(MODES)}: convert it with `image_mode`")
        return picture if picture.mode == lossless else picture.convert(lossless)

    def _square(self, picture: Image.Image, name: Callable[[], str]) -> Image.Image:
        width, height = picture.size
        if width == height:
            return picture
        if not self.center_crop:
            raise UserError(
                f"images must be square, and {name()} is {width}x{height}: add `center_crop` to cut out the middle."
            )
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return picture.crop((left, top, left + side, top + side))


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow decodes."""
    return frozenset(s for s, name in Image.registered_extensions().items() if name in _formats())


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()  # loads what reads the formats
    return (*COMMON, *(name for name in Image.ID if name not in (*COMMON, *NOT_DECODED)))


def open_picture(stored: dict[str, Any] | bytes | None) -> Image.Image:
    """A picture that is not decoded yet, from the content of its file, or from its path where there is no content.

    Raises:
        ValueError, OSError: no picture, or in no format that Pillow decodes.
        DecompressionBombError: more pixels than Pillow's limit.
    """
    fields: dict[str, Any] = stored if isinstance(stored, dict) else {"bytes": stored}
    if fields.get("bytes"):
        file: BytesIO | Path = BytesIO(fields["bytes"])
    elif fields.get("path"):
        file = Path(os.fsdecode(fields["path"]))
    else:
        raise ValueError("it is empty")
    try:
        picture = Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError as error:  # whose own message shows the file as a Python object
        raise ValueError("its content is in no format of images that Pillow decodes") from error
    pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:  # Pillow only warns, and filters of warnings are not for threads
        picture.close()
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
    return picture


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Values in 8 bits by the range of their type, never by a guess.

    uint8 stay as they are, uint16 are divided by 257, floats from 0 to 1 multiplied by 255; the results are rounded.

    Raises:
        ValueError: floats out of this range, or another type.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if (kind, size) == ("u", 1):
        return values
    if (kind, size) == ("u", 2):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind not in "biuf":
        raise ValueError(f"its values are {values.dtype} and must be uint8, uint16 or floats from 0 to 1")
    least, most = values.min(), values.max()
    if kind == "f" and least >= 0 and most <= 1:  # false for NaN
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    raise ValueError(
        f"its values are {values.dtype} from {least:g} to {most:g} and must be uint8, uint16 or floats from 0 to 1"
    )


def _upright(picture: Image.Image) -> Image.Image:
    """A loaded picture, turned upright, in 8 bits. Of a file of several frames, the first is read.

    Raises:
        ValueError: values of more than 8 bits whose range is not known.
    """
    turned = ImageOps.exif_transpose(picture) if picture.getexif().get(ORIENTATION, 1) != 1 else picture
    if turned.mode != "F" and not turned.mode.startswith("I"):
        return turned
    values = np.asarray(turned)
    tags = getattr(picture, "tag_v2", {})  # of a TIFF file
    if turned.mode == "I":
        if picture.format not in SCALED:
            raise ValueError("its values are integers of 32 bits, whose range is not known, and must have 8 or 16 bits")
        values = values.astype(np.uint16)
    if tags.get(BITS, (16,)) == (12,):
        raise ValueError("its values are integers of 12 bits and must have 8 or 16 bits")
    if tags.get(WHITE_IS_ZERO) == 0 or "transparency" in turned.info:
        raise ValueError("with more than 8 bits, 0 must be black and transparency an alpha channel")
    return Image.fromarray(as_bytes(values))
