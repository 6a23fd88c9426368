"""One picture into bytes: upright, 8 bits, one colour mode, one shape and size; and bytes into what networks see."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from ..errors import UserError, first_line
from ..transparency import in_mode, may_be_transparent
from .draw import Draw
from .metadata import without_metadata

MODES = ("L", "RGB", "RGBA")  # one, three and four channels
BITS, WHITE_IS_ZERO = 258, 262  # TIFF tags; the second one is 0 where white is 0
SCALED = ("PNG", "PPM")  # Pillow reads 16 bits of these formats as integers of 32 bits
COMMON = ("PNG", "JPEG", "WEBP")  # tried first, which saves time: their first bytes fit no other format
# Pillow knows them by their first bytes, and has no decoder of its own for them.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


def to_unit(pixels: Tensor, flips: Tensor | None, device: torch.device | str) -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [-1, 1] on `device`; floats become float32. Those in `flips` are mirrored."""
    x = pixels.to(device, non_blocking=True)
    # Float32 in any case: noise is added in the type of the images, and half precision cannot tell neighbours apart.
    x = x.float() if x.is_floating_point() else x.float() / 127.5 - 1
    return x if flips is None else torch.where(flips.to(device)[:, None, None, None], x.flip(-1), x)


# What comes from the loader [B, ...], which of them are mirrored, and the draw of the step with their places in it ->
# what the network learns, float32 [B, C, H, W].
Transform = Callable[[Tensor, Tensor | None, Draw, range], Tensor]


def pictures(pixels: Tensor, flips: Tensor | None, draw: Draw, places: range) -> Tensor:
    """The transform of pictures, and of other data that is trained as it is stored."""
    return to_unit(pixels, flips, draw.device)


class Converted(NamedTuple):
    """A picture as uint8 [C, side, side], and its width, height, and mode or type before the conversion."""

    pixels: np.ndarray
    original: tuple[int, int, str]


@dataclass(frozen=True)
class PictureFormat:
    """The form that every picture of a data set is converted to.

    Attributes:
        resolution: side in pixels, or None for the picture's own.
        center_crop: cut the largest part in the middle out of a picture that is not square, or not of the shape of
            `width` and `resolution`.
        mode: "L", "RGB" or "RGBA", or None for the picture's own.
        background: colour behind transparent pixels where `mode` has no alpha, as `PIL.ImageColor` understands it.
        width: in pixels, of pictures that are `resolution` high; None for square ones.

    Raises:
        UserError: a mode or a colour that does not exist, or a width alone.
    """

    resolution: int | None = None
    center_crop: bool = False
    mode: str | None = None
    background: str = "white"
    width: int | None = None

    def __post_init__(self) -> None:
        if self.width is not None and self.resolution is None:
            raise UserError(f"`width` {self.width} needs `resolution`, the height of the images.")
        if self.mode not in (None, *MODES):
            raise UserError(f"`image_mode` must be one of {', '.join(MODES)}, got {self.mode}.")
        try:
            colour: tuple[int, ...] = ImageColor.getrgb(self.background)
        except ValueError:
            colour = ()
        if len(colour) != 3:
            raise UserError(f"`background` must be the name of a colour, or #rrggbb, got {self.background}.")

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the images, or None for the picture's own."""
        return None if self.resolution is None else (self.width or self.resolution, self.resolution)

    def facts(self) -> dict[str, Any]:
        """The settings, to be compared; those of earlier versions had no width."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "width" or value not in (None, self.resolution)
        }

    def convert(self, stored: Any, number: int, shape: tuple[int, ...] | None = None) -> Converted:
        """Convert a stored picture: {"bytes", "path"} as `datasets.Image` stores it, bytes, or an array of pixels.

        An array of the right size keeps its channels, however many they are, where `mode` is None.

        Args:
            number: its place in the data set, which names it in messages if it has no path.
            shape: [C, H, W] of the first picture, where it must be the same.

        Raises:
            UserError: it cannot be read or converted, or has another shape, without `center_crop`, or differs in size.
        """
        try:
            converted = self._from_array(stored) if isinstance(stored, np.ndarray) else self._from_file(stored)
        except Exception as error:  # of damaged files, Pillow raises whatever its decoders meet
            raise UserError(
                f"the image {_name(stored, number)} cannot be read ({first_line(error).rstrip('.')}); convert, replace "
                "or remove it."
            ) from error
        if shape is not None and converted.pixels.shape != tuple(shape):
            first, own = (f"{width}x{height} of {channels}" for channels, height, width in (shape, converted[0].shape))
            raise UserError(
                f"all images must have the same size and number of channels: the first is {first}, and "
                f"{_name(stored, number)} is {own}; give `resolution` and `image_mode`."
            )
        return converted

    def _from_file(self, stored: Any) -> Converted:
        with _loaded(stored) as picture:
            return self._from_picture(_upright(picture), picture.mode)

    def _from_array(self, values: np.ndarray) -> Converted:
        if values.ndim not in (2, 3) or values.size == 0:
            raise ValueError(f"it is an array {list(values.shape)} and must be [H, W] or [H, W, C], with pixels")
        array = as_bytes(values).reshape(*values.shape[:2], -1)
        height, width, channels = array.shape
        if self.mode is None and (width, height) == (self.size or (height, height)):
            return Converted(array.transpose(2, 0, 1), (width, height, str(values.dtype)))
        if channels not in (1, 3, 4):
            raise ValueError(f"it has {channels} channels, and only 1, 3 or 4 can be resized, cropped or converted")
        return self._from_picture(Image.fromarray(array.squeeze(-1) if channels == 1 else array), str(values.dtype))

    def _from_picture(self, upright: Image.Image, mode: str) -> Converted:
        """`mode`: that the picture had before it was turned upright and brought to 8 bits."""
        picture = self._in_mode(upright)
        width, height = upright.size
        across, high = self.size or (1, 1)
        if width * high != height * across:
            if not self.center_crop:
                own = f"it is {width}x{height}"
                if across == high:
                    raise ValueError(f"{own} and must be square: `center_crop` cuts out the middle")
                raise ValueError(f"{own} and must be of the shape {across}x{high}: `center_crop` cuts out the middle")
            kept = max(1, min(width, round(height * across / high))), max(1, min(height, round(width * high / across)))
            left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
            picture = picture.crop((left, top, left + kept[0], top + kept[1]))
        if self.size not in (None, picture.size):
            picture = picture.resize((across, high), Image.Resampling.LANCZOS)
        array = np.asarray(picture)
        return Converted(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1), (width, height, mode))

    def _in_mode(self, picture: Image.Image) -> Image.Image:
        """A picture in mode L, RGB or RGBA; by default in the one that loses nothing."""
        colour = picture.info.get("transparency")
        if isinstance(colour, tuple) and max(colour) > 255:  # Pillow would look for it among colours of 8 bits
            raise ValueError("its transparent colour has 16 bits: save it with an alpha channel")
        if self.mode is None:
            lossless = "RGBA" if may_be_transparent(picture) else {"P": "RGB", "1": "L"}.get(picture.mode, picture.mode)
            if lossless not in MODES:
                raise ValueError(f"its mode {lossless} is not one of {', '.join(MODES)}: convert it with `image_mode`")
            return in_mode(picture, lossless)
        return in_mode(picture, self.mode, self.background)


def _name(stored: Any, number: int) -> str:
    """A picture's name in messages: the path of its file, where it has one."""
    path = stored.get("path") if isinstance(stored, dict) else None
    return os.fsencode(path).decode("utf-8", "backslashreplace") if path else f"number {number}"


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
        ValueError, OSError: no picture, in no format that Pillow decodes, or of more pixels than Pillow's limit.
    """
    fields: dict[str, Any] = stored if isinstance(stored, dict) else {"bytes": stored}
    if not (fields.get("bytes") or fields.get("path")):
        raise ValueError("it is empty")
    file = BytesIO(fields["bytes"]) if fields.get("bytes") else Path(os.fsdecode(fields["path"]))
    try:
        picture = Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError as error:  # whose own message shows the file as a Python object
        raise ValueError("its content is in no format of images that Pillow decodes") from error
    pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:  # Pillow only warns, and filters of warnings are not for threads
        picture.close()
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
    return picture


def _loaded(stored: dict[str, Any] | bytes | None) -> Image.Image:
    """A decoded picture. Where its file cannot be read as it is, it is read without its metadata.

    Raises:
        ValueError, OSError, and what else Pillow raises of damaged pixels.
    """
    try:
        return _decoded(stored)
    except Exception:
        with suppress(Exception):  # else the first error tells what is wrong
            return _decoded(without_metadata(_content(stored)))
        raise


def _decoded(stored: dict[str, Any] | bytes | None) -> Image.Image:
    picture = open_picture(stored)
    try:
        picture.load()
    except BaseException:
        picture.close()
        raise
    return picture


def _content(stored: dict[str, Any] | bytes | None) -> bytes:
    """The content of a picture's file; nothing where it cannot be read."""
    fields: dict[str, Any] = stored if isinstance(stored, dict) else {"bytes": stored}
    if not fields.get("bytes") and fields.get("path"):
        with suppress(OSError):
            return Path(os.fsdecode(fields["path"])).read_bytes()
    return fields.get("bytes") or b""


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
    span = f" from {values.min():g} to {values.max():g}" if kind in "biuf" else ""
    if kind == "f" and values.min() >= 0 and values.max() <= 1:  # false for NaN
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    raise ValueError(
        f"its values are {values.dtype}{span} and must be uint8, uint16 or floats from 0 to 1, unless `normalize` has "
        "them trained as they are"
    )


def _upright(picture: Image.Image) -> Image.Image:
    """A loaded picture, which is turned upright, in 8 bits. Of a file of several frames, the first is read.

    Raises:
        ValueError: values of more than 8 bits whose range is not known.
    """
    with suppress(Exception):  # of damaged EXIF, Pillow raises whatever it meets; then nobody knows the orientation
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    tags = getattr(picture, "tag_v2", {})  # of a TIFF file
    if picture.mode == "I" and picture.format not in SCALED:
        raise ValueError("its values are integers of 32 bits, whose range is not known, and must have 8 or 16 bits")
    if tags.get(BITS, (16,)) == (12,):
        raise ValueError("its values are integers of 12 bits and must have 8 or 16 bits")
    if tags.get(WHITE_IS_ZERO) == 0 or "transparency" in picture.info:
        raise ValueError("with more than 8 bits, 0 must be black and transparency an alpha channel")
    values = np.asarray(picture)
    return Image.fromarray(as_bytes(values.astype(np.uint16) if picture.mode == "I" else values))
