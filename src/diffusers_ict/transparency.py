"""Pictures whose pixels may be transparent, seen on a background: what lies under transparency has no meaning."""

import numpy as np
from PIL import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
SQUARES = 8  # of the checkerboard, along the shorter side of an image
LIGHT, DARK = 1.0, 0.8  # its greys


def may_be_transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel, or a colour that stands for transparency."""
    return picture.mode in WITH_ALPHA or "transparency" in picture.info


def in_mode(picture: Image.Image, mode: str, background: str = "white") -> Image.Image:
    """A picture in the mode L, RGB or RGBA; without alpha there, it is laid on a background.

    Raises:
        ValueError: Pillow does not convert the picture's mode.
    """
    if picture.mode == "La":  # which Pillow converts to this mode alone
        picture = picture.convert("LA")
    if may_be_transparent(picture) and mode != "RGBA":
        canvas = Image.new("RGBA", picture.size, background)
        canvas.alpha_composite(picture.convert("RGBA"))
        picture = canvas
    return picture.convert(mode)


def on_checkerboard(images: np.ndarray) -> np.ndarray:
    """Images with alpha on grey and white squares: [n, H, W, 4] in [0, 1] -> [n, H, W, 3]; others as they are."""
    if images.shape[-1] != 4:
        return images
    height, width = images.shape[1:3]
    side = max(1, min(height, width) // SQUARES)
    rows, columns = np.arange(height)[:, None] // side, np.arange(width) // side
    board = np.where((rows + columns) % 2, DARK, LIGHT)[..., None]
    alpha = images[..., 3:]
    return images[..., :3] * alpha + board * (1 - alpha)
