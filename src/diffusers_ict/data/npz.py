"""Images and labels in a .npz file of NumPy."""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line
from .sources import Pictures

UNREADABLE = (
    *(OSError, ValueError, EOFError, MemoryError, RuntimeError, ArithmeticError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tokenize.TokenError, SyntaxError, TypeError),
)
SMALLEST = 8  # pixels: side of images in rows; a row of fewer numbers is something else


@dataclass(frozen=True)
class Header:
    """Shape and type of an array in a file, and the place of its first byte in the member of the archive."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    begin: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_npz(
    path: Path, image_column: str | None, label_column: str | None, with_labels: bool, mapped: bool = False
) -> Pictures:
    """The images of a .npz file, and its labels where they are wanted and there. Other arrays are not read.

    Args:
        image_column, label_column: names of the arrays, where they are not the only ones of their shape.
        mapped: map images that are not compressed instead of reading them; their checksum is not looked at then.

    Raises:
        UserError: no such file or array, several that could be meant, or one of a shape that cannot be meant.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as file, np.load(path, allow_pickle=False) as arrays:
            headers = {
                name.removesuffix(".npy"): _header(file, name) for name in file.namelist() if name[-4:] == ".npy"
            }
            image, label = _image_array(headers, image_column, path), None
            count = headers[image].shape[:1]
            if with_labels:
                label = _pick(headers, label_column, lambda h: h.dtype.kind in "iu" and h.shape == count, "label", path)
            for name in filter(None, (image, label)):
                _check_size(name, headers[name], file.getinfo(f"{name}.npy"))
            member = file.getinfo(f"{image}.npy")
            stored = mapped and member.compress_type == zipfile.ZIP_STORED
            images = _map(path, member.header_offset, headers[image]) if stored else arrays[image]
            labels = None if label is None else arrays[label]
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as .npz ({first_line(error)}); write it again with `numpy.savez`."
        ) from error
    if side := _side_of_flat(headers[image]):
        images = images.reshape(-1, 3, side, side)
        labels = None if labels is None else labels.astype(np.int64) - 1
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    return Pictures(images, labels=labels, where=f" of {path.name}")


def _header(file: zipfile.ZipFile, name: str) -> Header:
    """What an array in a file says of itself; only this much is read."""
    with file.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its arrays are in version {version} of NumPy's format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        return Header(shape, dtype, fortran, member.tell())


def _check_size(name: str, header: Header, member: zipfile.ZipInfo) -> None:
    """Take no memory for an array that is not there in full."""
    said, there = math.prod(header.shape) * header.dtype.itemsize, member.file_size - header.begin
    if not header.dtype.hasobject and (said != there or min(header.shape, default=0) < 0):
        raise ValueError(f"{name} is {header}, which takes {said} bytes, and {there} are there")


def _map(path: Path, member: int, header: Header) -> np.ndarray:
    """An array that is stored as it is, in the member of the archive that begins at this byte."""
    with path.open("rb") as raw:
        raw.seek(member + 26)  # where the member says how long its name and its extra field are
        name, extra = struct.unpack("<HH", raw.read(4))
    order = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", member + 30 + name + extra + header.begin, header.shape, order)  # type: ignore[call-overload]


def _image_array(headers: dict[str, Header], name: str | None, path: Path) -> str:
    """The name of the array of images."""
    image = _pick(headers, name, _may_be_pixels, "image", path)
    if image is None or not (len(headers[image].shape) in (3, 4) or _side_of_flat(headers[image])):
        raise UserError(
            f"{path} holds no images: an array [n, H, W], [n, H, W, C] or [n, C, H, W] of uint8, uint16 or floats from "
            f"0 to 1, got {_list(headers)}; choose it by `image_column`."
        )
    return image


def _may_be_pixels(header: Header) -> bool:
    kind, size = header.dtype.kind, header.dtype.itemsize
    return _side_of_flat(header) > 0 or (len(header.shape) in (3, 4) and (kind == "f" or (kind == "u" and size <= 2)))


def _side_of_flat(header: Header) -> int:
    """Side of the images of an array [n, 3 side side] of bytes, or 0: so are the parts of downsampled ImageNet.

    Their rows hold all red values, then all green and all blue ones, and their labels count from 1.
    """
    if len(header.shape) != 2 or header.dtype != np.uint8:
        return 0
    side = math.isqrt(header.shape[1] // 3)
    return side if side >= SMALLEST and header.shape[1] == 3 * side**2 else 0


def _pick(
    headers: dict[str, Header], name: str | None, suits: Callable[[Header], bool], what: str, path: Path
) -> str | None:
    """The named array, or the only one that suits, or None."""
    if name is not None:
        if name not in headers:
            raise UserError(f"{path} has no array {name!r} for `{what}_column`; it has {_list(headers)}.")
        return name
    fitting = [key for key, header in headers.items() if suits(header)]
    if len(fitting) > 1:
        names = ", ".join(fitting)
        raise UserError(f"{path} has several arrays that could be meant by `{what}_column`: {names}; name one.")
    return fitting[0] if fitting else None


def _list(headers: dict[str, Header]) -> str:
    return ", ".join(f"{name} ({header})" for name, header in headers.items()) or "none"
