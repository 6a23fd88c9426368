"""One picture into bytes: upright, 8 bits, one colour mode, square, one size."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..errors import UserError

MODES = ("L", "RGB", "RGBA")  # one, three and four channels
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112  # the EXIF tag


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

    def apply(self, picture: Image.Image | np.ndarray, name: Callable[[], str]) -> tuple[np.ndarray, int]:
        """A picture as uint8 [side, side, C], and the side in pixels that it had before it was resized.

        An array of the right size keeps its channels, however many they are, where `mode` is None.

        Raises:
            UserError: a picture that is not square, without `center_crop`; `name` gives its name.
            OSError, SyntaxError, ValueError: it cannot be read or converted.
        """
        if isinstance(picture, np.ndarray) and self.mode is None:
            height, width = picture.shape[:2]
            if height == width == (self.resolution or height):
                return picture.reshape(height, width, -1), height
        square = self._square(self._in_mode(_as_pil(picture)), name)
        side = square.width
        if self.resolution is not None and side != self.resolution:
            square = square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        array = np.asarray(square)
        return array.reshape(*array.shape[:2], -1), side

    def _in_mode(self, picture: Image.Image) -> Image.Image:
        """A picture in mode L, RGB or RGBA. Palettes are decoded to what they stand for."""
        transparent = picture.mode in WITH_ALPHA or "transparency" in picture.info
        if self.mode is not None:
            if transparent and self.mode != "RGBA":
                canvas = Image.new("RGBA", picture.size, self.background)
                canvas.alpha_composite(picture.convert("RGBA"))
                picture = canvas
            return picture.convert(self.mode)
        if picture.mode == "P":
            return picture.convert("RGBA" if transparent else "RGB")
        if picture.mode not in MODES:
            raise ValueError(f"its mode {picture.mode} is not one of {', '.join(MODES)}: convert with `image_mode`")
        return picture

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


def _as_pil(picture: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image of 8 bits, upright. Of a file of several frames, the first is read."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    picture.load()
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    return _eight_bits(picture)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey pictures of 16 bits or of floats in 8 bits; all others as they are.

    65535 of 16 bits becomes 255. Floats are either shares, from 0 to 1, or levels, from 0 to 255.

    Raises:
        ValueError: values out of these ranges.
    """
    integers = picture.mode == "I" or picture.mode.startswith("I;")
    if not integers and picture.mode != "F":
        return picture
    values = np.asarray(picture)
    least, most = values.min(), values.max()
    if integers:
        if least < 0 or most > 65535:
            raise ValueError(f"its values are integers from {least} to {most} and must lie within 0 and 65535")
        levels = (values.astype(np.uint32) + 128) // 257
    else:
        if not (least >= 0 and most <= 255):  # false for NaN too
            raise ValueError(
                f"its values are floats from {least:g} to {most:g} and must lie within 0 and 1, or within 0 and 255"
            )
        levels = np.rint(values * 255 if most <= 1 else values)
    return Image.fromarray(levels.astype(np.uint8))
