"""Files of pictures without what their pixels do not need: a damaged profile or comment is no reason to lose them."""

import zlib
from collections.abc import Iterator

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
KEPT_OF_PNG = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
APP0, EXIF, ADOBE, APP15, COMMENT, SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA  # markers of JPEG
ADOBE_LENGTH = 14  # of a whole segment, which says how colours are stored


def without_metadata(content: bytes) -> bytes | None:
    """The content of a PNG or JPEG file with its pixels and its orientation alone, or None for other formats.

    What pixels need is copied as it is, so a picture whose pixels are damaged stays damaged.
    """
    if content.startswith(PNG):
        return PNG + b"".join(_png_chunks(content))
    return JPEG + b"".join(_jpeg_segments(content)) if content.startswith(JPEG) else None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Length, name, content and checksum of each chunk (PNG, 3rd edition, section 5.3)."""
    at = len(PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name, checked = content[at + 4 : at + 8], zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big")
        if name in KEPT_OF_PNG or (name == b"eXIf" and content[end - 4 : end] == checked):
            yield content[at:end]
        at = end


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Marker, length and content of each segment before the first scan (ITU-T T.81, B.1.1), and all that follows."""
    at = len(JPEG)
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"", bytes([SCAN])):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        whole = marker == EXIF or (marker == ADOBE and length >= ADOBE_LENGTH)
        if whole or not (APP0 <= marker <= APP15 or marker == COMMENT):
            yield content[at : at + 2 + length]
        at += 2 + length
    yield content[at:]
