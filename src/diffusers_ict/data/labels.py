"""Labels of images, checked."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

MOST_CLASSES = 100_000  # larger numbers are names of images, and no network has room for as many classes


def checked_labels(labels: Sequence[int] | np.ndarray, count: int, names: tuple[str, ...] | None) -> tuple[Tensor, int]:
    """Labels of `count` images as int64 [count], and the number of classes: that of the names, or the largest plus one.

    Raises:
        UserError: labels that are no integers, too few or too many, or out of range.
    """
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise UserError(
            "labels must be one integer for each image, got lists of different lengths; give another `label_column`."
        ) from error
    if array.shape != (count,):
        raise UserError(
            f"labels must be one integer for each of the {count} images, got {list(array.shape)}; give another "
            "`label_column`."
        )
    if array.dtype.kind not in "iu":
        raise UserError(f"labels must be integers from 0, got {_example(array)}; give another `label_column`.")
    least, most = int(array.min()), int(array.max())
    classes = len(names) if names else most + 1
    if least < 0 or most >= classes:
        raise UserError(
            f"labels must lie within 0 and {classes - 1}, got {least} to {most}; unlabelled images (often -1) have to "
            "be left out."
        )
    if classes > MOST_CLASSES:
        raise UserError(
            f"labels must lie below {MOST_CLASSES}, because the number of classes is the largest plus one, got {most}; "
            "number the classes from 0."
        )
    return torch.from_numpy(array.astype(np.int64)), classes


def _example(array: np.ndarray) -> str:
    """A label that is no integer."""
    integers = (int, np.integer)
    odd = [value for value in array.tolist() if not isinstance(value, integers) or isinstance(value, bool)]
    return f"{odd[0]!r}" if odd else "numbers that are too large"
