"""Pictures made of many small images: grids, and blocks of grids with row and column names."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 64  # images are enlarged to about this many pixels
TEXT = 12  # height of names in pixels


def as_pictures(images: Tensor) -> np.ndarray:
    """[n, C, H, W] in [-1, 1] -> [n, H, W, C] in [0, 1]; images of 2 or more than 4 channels by their first channel."""
    shown = images if images.shape[1] in (1, 3, 4) else images[:, :1]
    return ((shown.float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()


def image_grid(images: np.ndarray, columns: int, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Images in [0, 1], [n, H, W, C] with C = 1, 3 or 4, as one picture.

    Args:
        columns: images in a row.
        zoom: side of a pixel.
        gap: white pixels between images.
    """
    count, height, width, channels = images.shape
    pixels = (images * 255).round().clip(0, 255).astype(np.uint8)
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tall, wide = height * zoom + gap, width * zoom + gap
    sheet = np.full((-(-count // columns) * tall - gap, columns * wide - gap, channels), 255, np.uint8)
    for number, image in enumerate(pixels):
        top, left = number // columns * tall, number % columns * wide
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)


def labelled_blocks(
    blocks: dict[str, np.ndarray], columns: int, column_names: Sequence[str] = (), gap: int = 2
) -> Image.Image:
    """Grids of equal width below each other, the name of each to its left, and names of columns above the first.

    Args:
        blocks: images in [0, 1], [n, H, W, C] each, by name.
        columns: images in a row.
        column_names: as many as columns; names wider than a column are cut.
    """
    side = next(iter(blocks.values())).shape[2]
    zoom = max(1, SIDE // side)
    grids = {name: image_grid(images, columns, zoom, gap).convert("RGB") for name, images in blocks.items()}
    font = ImageFont.load_default(TEXT)
    left = 8 + max(int(font.getlength(name)) for name in blocks) if any(blocks) else 0
    top = TEXT + 6 if column_names else 0
    width = max(grid.width for grid in grids.values())
    height = sum(grid.height for grid in grids.values()) + 4 * gap * (len(grids) - 1)
    sheet = Image.new("RGB", (left + width, top + height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(column_names):
        while name and font.getlength(name) > side * zoom:
            name = name[:-1]
        pen.text((left + number * (side * zoom + gap), 2), name, "black", font)
    for name, grid in grids.items():
        sheet.paste(grid, (left, top))
        pen.text((2, top + min(grid.height, side * zoom) // 2 - TEXT // 2), name, "black", font)
        top += grid.height + 4 * gap
    return sheet
