"""Pictures made of many small images: grids, and blocks of grids with row and column names."""

import importlib.util
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .transparency import on_checkerboard

SIDE = 64  # images are enlarged to about this many pixels
TEXT, SMALL_TEXT = 12, 8  # heights of names in pixels, from the largest to the least
MOST_COLUMNS = 16  # of images
LINES = 3  # that the name of a column may have
LONGEST = 200  # characters of a name that are looked at
NO_CHARACTER = "\U0010ffff"  # fonts draw it like every character that they lack
PIECES = re.compile(r"\s+|[^\s/_-]*[/_-]|[^\s/_-]+")  # between which a name may be broken


def as_pictures(images: Tensor) -> np.ndarray:
    """[n, C, H, W] in [-1, 1] -> [n, H, W, C] in [0, 1]; images of 2 or more than 4 channels by their first channel."""
    shown = images if images.shape[1] in (1, 3, 4) else images[:, :1]
    return ((shown.float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()


def image_grid(images: np.ndarray, columns: int, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Images in [0, 1], [n, H, W, C] with C = 1, 3 or 4, as one picture; transparency shows a checkerboard.

    Args:
        columns: images in a row.
        zoom: side of a pixel.
        gap: white pixels between images.
    """
    images = on_checkerboard(images)
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
    blocks: dict[str, np.ndarray],
    columns: int,
    column_names: Sequence[str] = (),
    gap: int = 2,
    row_names: Sequence[str] = (),
) -> Image.Image:
    """Grids of equal width below each other, the name of each to its left, and names of columns above the first.

    Args:
        blocks: images in [0, 1], [n, H, W, C] each, by name.
        columns: images in a row.
        column_names: as many as columns; long ones are written smaller and in several lines, and cut at last.
        row_names: of the rows of each grid.
    """
    tall, side = next(iter(blocks.values())).shape[1:3]
    zoom = max(1, int(SIDE / math.sqrt(tall * side)))
    grids = {name: image_grid(images, columns, zoom, gap).convert("RGB") for name, images in blocks.items()}
    font, titles = font_of(TEXT), [_fitted(name[:LONGEST], side * zoom) for name in column_names]
    middle = _width(list(blocks), font)
    left = middle + _width(row_names, font)
    top = max((small.size + 2) * len(lines) for small, lines in titles) + 4 if titles else 0
    width = max(grid.width for grid in grids.values())
    height = sum(grid.height for grid in grids.values()) + 4 * gap * (len(grids) - 1)
    sheet = Image.new("RGB", (left + width, top + height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (small, lines) in enumerate(titles):
        for place, line in enumerate(lines, -len(lines)):  # the last line stands on the images
            pen.text((left + number * (side * zoom + gap), top - 2 + place * (small.size + 2)), line, "black", small)
    for name, grid in grids.items():
        sheet.paste(grid, (left, top))
        for number, (x, text) in enumerate([(2, name), *((middle, row) for row in row_names)]):
            row = max(0, number - 1) * (tall * zoom + gap)
            pen.text((x, top + row + tall * zoom // 2 - TEXT // 2), text, "black", font)
        top += grid.height + 4 * gap
    return sheet


def classes_in_turn(blocks: dict[str, np.ndarray], class_names: Sequence[str] = ()) -> Image.Image:
    """Blocks of as many images, one row each where that is readable. Classes go round in order, where there are some.

    A column is of one class, whose name stands above; where there are too many classes, each row has the number of its
    first.
    """
    count, classes = len(next(iter(blocks.values()))), len(class_names)
    columns = count if count <= MOST_COLUMNS else min(MOST_COLUMNS, math.ceil(math.sqrt(count)))
    if columns < count and 0 < classes <= MOST_COLUMNS:
        columns = MOST_COLUMNS // classes * classes
    if columns < count and classes > MOST_COLUMNS:
        starts = range(0, count, columns)
        return labelled_blocks(blocks, columns, row_names=[f"from {first % classes}" for first in starts])
    names = [legible(name, str(number)) for number, name in enumerate(class_names[:columns])]
    return labelled_blocks(blocks, columns, [names[number % classes] for number in range(columns)] if names else ())


def legible(name: str, otherwise: str) -> str:
    """A name in one line, or `otherwise` where the font lacks one of its characters, or would not join or turn them."""
    shown = " ".join(unicodedata.normalize("NFC", name[:LONGEST]).split())
    backwards = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in shown)
    unknown = not shown.isprintable() or any(_is_missing(letter) for letter in shown)
    return otherwise if not shown or backwards or unknown else shown


@lru_cache(maxsize=16)
def font_of(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib and has many scripts; without matplotlib, Pillow's own font."""
    package = importlib.util.find_spec("matplotlib")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=1024)
def _is_missing(letter: str) -> bool:
    drawn, lacking = (bytes(font_of(TEXT).getmask(each)) for each in (letter, NO_CHARACTER))
    return drawn == lacking


def _width(names: Sequence[str], font: Any) -> int:
    """Pixels of a column of names, with a margin; 0 without names."""
    return 8 + max(int(font.getlength(name)) for name in names) if any(names) else 0


def _fitted(name: str, width: int) -> tuple[Any, list[str]]:
    """The largest font in which a name is few lines of that width, and these lines."""
    for size in range(TEXT, SMALL_TEXT - 1, -1):
        font = font_of(size)
        lines = _lines(name, width, font)
        if len(lines) <= LINES and all(font.getlength(piece) <= width for piece in PIECES.findall(name)):
            break
    return font, lines if len(lines) <= LINES else _cut(lines[:LINES], width, font)


def _lines(text: str, width: int, font: Any) -> list[str]:
    """A text in lines of at most that width, broken within a word only where the word is wider."""
    lines = [""]
    for piece in PIECES.findall(text):
        if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        for letter in piece if lines[-1] else piece.lstrip():
            if lines[-1] and font.getlength(lines[-1] + letter) > width and not letter.isspace():
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _cut(lines: list[str], width: int, font: Any) -> list[str]:
    """Lines of which the last one says that more was to come."""
    *others, last = lines
    while last and font.getlength(f"{last}\u2026") > width:
        last = last[:-1]
    return [*others, f"{last}\u2026"]
