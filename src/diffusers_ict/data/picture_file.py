"""Which files are pictures, and how they are opened."""

from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

COMMON = ("PNG", "JPEG", "WEBP")  # tried first, which saves time: their first bytes fit no other format
# Pillow knows them by their first bytes, and has no decoder of its own for them.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow decodes."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN and name not in NOT_DECODED)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    suffixes()  # loads what reads the formats
    return (*COMMON, *(name for name in Image.ID if name not in (*COMMON, *NOT_DECODED)))


def open_picture(file: Path | bytes) -> Image.Image:
    """A picture that is not decoded yet, of a file or of its content.

    Raises:
        ValueError, OSError: no picture, or in no format that Pillow decodes.
        DecompressionBombError: more pixels than Pillow's limit.
    """
    if not file:
        raise ValueError("it is empty")
    try:
        picture = Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=_formats())
    except Image.UnidentifiedImageError as error:  # whose own message shows the file as a Python object
        raise ValueError("its content is in no format of images that Pillow decodes") from error
    pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:  # Pillow only warns, and filters of warnings are not for threads
        picture.close()
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
    return picture
