"""Images and labels in a .npz file of NumPy."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .settings import DataSettings
from .sources import listed, pick, refuse, without_conditions

READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
SMALLEST = 8  # pixels: side of images in rows; a row of fewer numbers is something else


class Header:
    """Shape and type of an array in a file; only this much is read."""

    def __init__(self, file: zipfile.ZipFile, name: str) -> None:
        with file.open(name) as member:
            version = np.lib.format.read_magic(member)
            if version not in READERS:
                raise ValueError(f"its arrays are in version {version} of NumPy's format")
            self.shape, _, self.dtype = READERS[version](member)
        # Rows [n, 3 side side] of bytes hold all red values, then all green and all blue ones: so are the parts of
        # downsampled ImageNet, whose labels count from 1.
        side = math.isqrt(self.shape[1] // 3) if len(self.shape) == 2 and self.dtype == np.uint8 else 0
        self.side = side if side >= SMALLEST and self.shape[1] == 3 * side**2 else 0

    @property
    def may_be_images(self) -> bool:
        """Whether shape and type are those of images."""
        return self.side > 0 or (len(self.shape) in (3, 4) and self.dtype.str[1:] in ("u1", "u2", "f2", "f4", "f8"))


@contextmanager
def open_npz(path: Path) -> Iterator[tuple[dict[str, Header], Any]]:
    """The headers of the arrays in a file by name, and the arrays, which are read when they are asked for.

    Raises:
        UserError: there is no such file, or it is damaged; also where that shows within the block.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as file, np.load(path, allow_pickle=False) as arrays:
            names = [name for name in file.namelist() if name[-4:] == ".npy"]
            yield {name.removesuffix(".npy"): Header(file, name) for name in names}, arrays
    except UserError:
        raise
    except Exception as error:  # of damaged files, zipfile and NumPy raise whatever they meet
        raise UserError(
            f"{path} cannot be read as .npz ({first_line(error)}); write it again with `numpy.savez`."
        ) from error


def read_npz(path: Path, settings: DataSettings, with_labels: bool, with_images: bool = True) -> tuple[int, Any, Any]:
    """The number of images in a file, the images, and the labels; other arrays are not read.

    Returns:
        n, [n, H, W] or [n, H, W, C] if they are wanted, and the labels if they are wanted and there.

    Raises:
        UserError: no such file or array, several that could be meant, or one of a shape that cannot be meant.
    """
    refuse(settings, "a .npz file", "dataset_config_name", "dataset_split")
    with open_npz(path) as (headers, arrays):
        image, label = _choose(headers, settings, with_labels)
        images = arrays[image] if with_images else None
        labels = arrays[label] if label is not None else None
    if side := headers[image].side:
        images = None if images is None else images.reshape(-1, 3, side, side)
        labels = None if labels is None else labels.astype(np.int64) - 1
    if images is not None and images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    return headers[image].shape[0], images, labels


def _choose(headers: dict[str, Header], settings: DataSettings, with_labels: bool) -> tuple[str, str | None]:
    """The names of the array of images and of that of the labels."""
    types = {name: f"{header.dtype} {list(header.shape)}" for name, header in headers.items()}
    suitable = without_conditions([name for name in headers if headers[name].may_be_images], settings)
    image = pick(types, "image_column", settings.image_column, suitable)
    if image is None or not (len(headers[image].shape) in (3, 4) or headers[image].side):
        raise UserError(
            "`image_column` must name an array [n, H, W], [n, H, W, C] or [n, C, H, W] of uint8, uint16 or floats from "
            f"0 to 1, got {listed(types)}."
        )
    if not with_labels:
        return image, None
    shape = headers[image].shape[:1]
    integers = [name for name, header in headers.items() if header.dtype.kind in "iu" and header.shape == shape]
    return image, pick(types, "label_column", settings.label_column, integers)
