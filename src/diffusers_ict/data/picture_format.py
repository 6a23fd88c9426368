"""One picture into bytes: upright, 8 bits, one colour mode, square, one size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..errors import UserError
from .levels import as_bytes

MODES = ("L", "RGB", "RGBA")  # one, three and four channels
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112  # the EXIF tag
BITS, WHITE_IS_ZERO = 258, 262  # TIFF tags; the second one is 0 where white is 0
SCALED = ("PNG", "PPM")  # Pillow reads 16 bits of these formats as integers of 32 bits


class Converted(NamedTuple):
    """A picture as uint8 [side, side, C], and the width and height and mode, or type, that it had before."""

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

    def apply(self, picture: Image.Image | np.ndarray, name: Callable[[], str]) -> Converted:
        """Convert a picture.

        An array of the right size keeps its channels, however many they are, where `mode` is None.

        Raises:
            UserError: a picture that is not square, without `center_crop`; `name` gives its name.
            ValueError: it cannot be converted; and whatever Pillow raises for one that it cannot read.
        """
        if isinstance(picture, np.ndarray):
            array, mode = _as_array(picture), str(picture.dtype)
            height, width = array.shape[:2]
            if self.mode is None and height == width == (self.resolution or height):
                return Converted(array, (width, height), mode)
            upright = _array_as_pil(array)
        else:
            picture.load()
            mode = picture.mode
            upright = _upright(picture)
        square = self._square(self._in_mode(upright), name)
        if self.resolution is not None and square.width != self.resolution:
            square = square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        array = np.asarray(square)
        return Converted(array.reshape(*array.shape[:2], -1), upright.size, mode)

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


def _as_array(values: np.ndarray) -> np.ndarray:
    """An array [H, W] or [H, W, C] as uint8 [H, W, C].

    Raises:
        ValueError: it has other dimensions, or values whose range is not known.
    """
    if values.ndim not in (2, 3) or values.size == 0:
        raise ValueError(f"it is an array {list(values.shape)} and must be [H, W] or [H, W, C], with pixels")
    return as_bytes(values).reshape(*values.shape[:2], -1)


def _array_as_pil(array: np.ndarray) -> Image.Image:
    """From uint8 [H, W, C]."""
    channels = array.shape[-1]
    if channels not in (1, 3, 4):
        raise ValueError(f"it has {channels} channels, and only 1, 3 or 4 can be resized, cropped or converted")
    return Image.fromarray(array.squeeze(-1) if channels == 1 else array)


def _upright(picture: Image.Image) -> Image.Image:
    """A loaded picture in 8 bits, turned upright. Of a file of several frames, the first is read."""
    if picture.getexif().get(ORIENTATION, 1) == 1:
        return _in_eight_bits(picture, picture)
    return _in_eight_bits(ImageOps.exif_transpose(picture), picture)


def _in_eight_bits(picture: Image.Image, original: Image.Image) -> Image.Image:
    """Grey pictures of 16 bits or of floats in 8 bits; all others as they are.

    Args:
        original: the picture as it was opened, which knows its file.

    Raises:
        ValueError: values whose range is not known.
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture)
    tags = getattr(original, "tag_v2", {})
    if picture.mode == "I":
        if original.format not in SCALED:
            raise ValueError("its values are integers of 32 bits, whose range is not known, and must have 8 or 16 bits")
        values = values.astype(np.uint16)
    if tags.get(BITS, (16,)) == (12,):
        raise ValueError("its values are integers of 12 bits and must have 8 or 16 bits")
    if tags.get(WHITE_IS_ZERO) == 0 or "transparency" in picture.info:
        raise ValueError("with more than 8 bits, 0 must be black and transparency an alpha channel")
    return Image.fromarray(as_bytes(values))
