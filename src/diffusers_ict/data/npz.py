"""Images and labels in a .npz file of NumPy."""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError, first_line
from .cache import state_of_files
from .source import Source

UNREADABLE = (
    *(OSError, ValueError, EOFError, MemoryError, RuntimeError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tokenize.TokenError, SyntaxError, TypeError),
)


SMALLEST = 8  # pixels: side of images in rows; a row of fewer numbers is something else


@dataclass(frozen=True)
class Header:
    """What an array in a file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_npz(
    path: Path, image_column: str | None, label_column: str | None, with_labels: bool, mapped: bool = False
) -> Source:
    """The images of a .npz file, and its labels where they are wanted and there.

    Args:
        image_column, label_column: names of the arrays, where they are not the only ones of their kind.
        mapped: map images that are not compressed instead of reading them; their checksum is not looked at then.

    Raises:
        UserError: no such file or array, several that could be meant, or one of a shape that cannot be meant.
    """
    identity = ["npz", state_of_files([path.resolve()]), image_column]
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    with _opened(path) as file:
        headers = {name.removesuffix(".npy"): _header(file, name) for name in file.namelist() if name.endswith(".npy")}
        chosen = _pick(headers, image_column, _may_be_pixels, "image_column", path)
        if chosen is None:
            raise UserError(
                f"{path} holds no images: an array of uint8, uint16 or floats from 0 to 1, [n, H, W], [n, H, W, C] or "
                f"[n, C, H, W], got {_list(headers)}."
            )
        shape = headers[chosen].shape
        flat = _side_of_flat(headers[chosen])
        if len(shape) not in (3, 4) and not flat:
            raise UserError(
                f"`image_column` must name an array [n, H, W], [n, H, W, C] or [n, C, H, W], and {chosen} of {path} is "
                f"{headers[chosen]}."
            )
        count, labels = shape[0], None
        if with_labels:
            labels = _pick(headers, label_column, lambda own: _may_be_labels(own, count), "label_column", path)
        images = _array(file, chosen, mapped)
        found = None if labels is None else _array(file, labels)
    if flat:
        images, shape = images.reshape(count, 3, flat, flat), (count, 3, flat, flat)
        found = None if found is None else found.astype(np.int64) - 1
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    return Source(
        images, count, found, name_of=lambda index: f"number {index} of {path.name}", identity=lambda: identity
    )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file, open; whatever reading it raises becomes one sentence."""
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as .npz ({first_line(error)}); write it again with `numpy.savez`."
        ) from error


def _header(file: zipfile.ZipFile, name: str) -> Header:
    with file.open(name) as member:
        return _parsed(member)


def _parsed(member: IO[bytes]) -> Header:
    """The header at the beginning of an array's file, which is read up to the array's first byte."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays are in version {version} of NumPy's format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return Header(shape, dtype, fortran)


def _array(file: zipfile.ZipFile, name: str, mapped: bool = False) -> np.ndarray:
    """An array; no memory is taken for one that is not there in full."""
    with file.open(f"{name}.npy") as member:
        header = _parsed(member)
        there = file.getinfo(f"{name}.npy").file_size - member.tell()
        said = math.prod(header.shape) * header.dtype.itemsize
        if not header.dtype.hasobject and (said != there or min(header.shape, default=0) < 0):
            raise ValueError(f"{name} is {header}, which takes {said} bytes, and {there} are there")
        if mapped and file.filename and file.getinfo(f"{name}.npy").compress_type == zipfile.ZIP_STORED:
            return _map(file.filename, file.getinfo(f"{name}.npy").header_offset, member.tell(), header)
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _map(path: str, member: int, begin: int, header: Header) -> np.ndarray:
    """An array that is stored as it is, `begin` bytes behind the header of the member that begins at byte `member`."""
    with open(path, "rb") as raw:
        raw.seek(member + 26)  # where the member says how long its name and its extra field are
        name, extra = struct.unpack("<HH", raw.read(4))
    return np.memmap(
        path, header.dtype, "r", member + 30 + name + extra + begin, header.shape, "F" if header.fortran else "C"
    )


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


def _may_be_labels(header: Header, count: int) -> bool:
    return header.dtype.kind in "iu" and header.shape == (count,)


def _pick(
    headers: dict[str, Header], name: str | None, suits: Callable[[Header], bool], flag: str, path: Path
) -> str | None:
    """The named array, or the only one that suits."""
    if name is not None:
        if name not in headers:
            raise UserError(f"{path} has no array {name!r} for `{flag}`; it has {_list(headers)}.")
        return name
    fitting = [key for key, header in headers.items() if suits(header)]
    if len(fitting) > 1:
        raise UserError(f"{path} has several arrays that could be meant by `{flag}`: {', '.join(fitting)}; name one.")
    return fitting[0] if fitting else None


def _list(headers: dict[str, Header]) -> str:
    return ", ".join(f"{name} ({header})" for name, header in headers.items()) or "none"
