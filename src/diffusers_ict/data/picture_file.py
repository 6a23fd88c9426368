"""Which files are pictures, and how they are opened."""

from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

# Pillow knows them by their first bytes, and has no decoder of its own for them.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow decodes."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN and name not in NOT_DECODED)


def open_picture(file: Path | BinaryIO) -> Image.Image:
    """A picture that is not decoded yet.

    Raises:
        ValueError, OSError: no picture, or in no format that Pillow decodes.
    """
    suffixes()  # loads what reads the formats
    try:
        return Image.open(file, formats=[name for name in Image.ID if name not in NOT_DECODED])
    except Image.UnidentifiedImageError as error:  # whose own message shows the file as a Python object
        raise ValueError("its content is in no format of images that Pillow decodes") from error
