"""Images and labels in a .npz file of NumPy."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import UserError
from .cache import state_of_files
from .source import Source


def read_npz(path: Path, image_column: str | None = None, label_column: str | None = None) -> Source:
    """The images of a .npz file, and its labels where it has any.

    Args:
        image_column, label_column: names of the arrays, where they are not the only ones of their kind.

    Raises:
        UserError: no such file or array, or several that could be meant.
    """
    identity = ["npz", state_of_files([path.resolve()]), image_column]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}.") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz ({error}).") from error
    images = _pick(arrays, image_column, lambda a: a.dtype == np.uint8 and a.ndim in (3, 4), "image_column", path)
    if images is None:
        raise UserError(f"{path} holds no images: an array of uint8, [n, H, W] or [n, H, W, C], got {list(arrays)}.")
    count = len(images)
    labels = _pick(
        arrays,
        label_column,
        lambda a: a.ndim == 1 and len(a) == count and np.issubdtype(a.dtype, np.integer),
        "label_column",
        path,
    )
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    return Source(
        images, count, labels, name_of=lambda index: f"number {index} of {path.name}", identity=lambda: identity
    )


def _pick(
    arrays: dict[str, np.ndarray], name: str | None, suits: Callable[[np.ndarray], bool], flag: str, path: Path
) -> np.ndarray | None:
    """The named array, or the only one that suits."""
    if name is not None:
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r} for `{flag}`; it has {', '.join(arrays)}.")
        return arrays[name]
    fitting = [key for key, array in arrays.items() if suits(array)]
    if len(fitting) > 1:
        raise UserError(f"{path} has several arrays that could be meant by `{flag}`: {', '.join(fitting)}; name one.")
    return arrays[fitting[0]] if fitting else None
