"""Data that is no 8-bit picture: arrays of numbers, read exactly as they are, and normalised for the network."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, first_line
from ..normalization import Normalization, fit
from .npz import open_npz
from .settings import DataSettings
from .sources import class_names_of, label_column, listed, open_dataset, pick, refuse, type_of

# What float32 holds exactly, and float64, which is rounded to it.
TYPES = ("float16", "float32", "float64", "uint8", "int8", "uint16", "int16")
OF_PICTURES = (
    *("image_mode", "background", "resolution", "width", "center_crop", "image_cache_dir"),
    *("conditioning_image_column", "conditioning_image_mode"),
)
NESTED = ("Array2D", "Array3D", "List", "LargeList", "Sequence", "list")  # columns that may hold arrays
AT_ONCE = 1024  # arrays that are read or looked at together


class Arrays(NamedTuple):
    """Arrays [n, H, W] or [n, H, W, C] as they are stored, and their labels where they are wanted and there."""

    values: np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    class_names: tuple[str, ...] | None = None


def read_arrays(settings: DataSettings, with_labels: bool, dataset: datasets.Dataset | None = None) -> Arrays:
    """The arrays of a .npz or .npy file, or of a column of a data set, by default of that which the settings name.

    Raises:
        UserError: no such file, array or column, several that could be meant, settings for pictures, or arrays of other
            types or shapes.
    """
    refuse(settings, "data with `normalize`, which is used as it is", *OF_PICTURES)
    if settings.train_data_dir:
        raise UserError("`normalize` is for arrays, which `dataset_name` gives, and `train_data_dir` is for pictures.")
    path = Path(settings.dataset_name or "")
    if dataset is None and path.suffix in (".npz", ".npy"):
        refuse(settings, f"a {path.suffix} file", "dataset_config_name", "dataset_split")
        found = _of_npz(path, settings, with_labels) if path.suffix == ".npz" else Arrays(_of_npy(path))
    else:
        found = _of_dataset(open_dataset(settings) if dataset is None else dataset, settings, with_labels)
    return found._replace(values=_checked(found.values, settings.channels_first))


def normalised(
    values: np.ndarray, kind: str | None, known: Normalization | None
) -> tuple[Tensor, Normalization, Counter]:
    """float32 [n, C, H, W] as the network sees it, how it came about, and what the arrays were.

    Args:
        values: [n, H, W, C]; kind: of the normalization that is fitted to them.
        known: that of a model, which holds instead.

    Raises:
        UserError: another kind or number of channels than the model's, or a channel that cannot be scaled.
    """
    count, height, width, channels = values.shape
    pixels = torch.from_numpy(values).permute(0, 3, 1, 2)
    if known is not None and kind not in (None, known.kind):
        raise UserError(f"the model was trained with `normalize` {known.kind}, got {kind}: leave it out.")
    if known is not None and len(known.offset) != channels:
        raise UserError(f"the model draws {len(known.offset)} channels, and the data has {channels}.")
    normalization = fit(pixels, str(kind)) if known is None else known
    x = torch.empty(pixels.shape)
    for place, part in zip(x.split(AT_ONCE), pixels.split(AT_ONCE)):
        place.copy_(normalization.apply(part))
    return x, normalization, Counter({(width, height, str(values.dtype)): count})


def _of_npz(path: Path, settings: DataSettings, with_labels: bool) -> Arrays:
    with open_npz(path) as (headers, arrays):
        types = {name: f"{header.dtype} {list(header.shape)}" for name, header in headers.items()}
        suitable = [name for name in headers if len(headers[name].shape) in (3, 4)]
        image = pick(types, "image_column", settings.image_column, suitable)
        if image is None:
            raise UserError(f"`image_column` must name an array [n, H, W] or [n, H, W, C], got {listed(types)}.")
        shape = headers[image].shape[:1]
        integers = [n for n in headers if headers[n].dtype.kind in "iu" and headers[n].shape == shape]
        label = pick(types, "label_column", settings.label_column, integers) if with_labels else None
        return Arrays(arrays[image], None if label is None else arrays[label])


def _of_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # of damaged files, NumPy raises whatever it meets
        raise UserError(
            f"{path} cannot be read as .npy ({first_line(error)}); write it again with `numpy.save`."
        ) from error


def _of_dataset(data: Any, settings: DataSettings, with_labels: bool) -> Arrays:
    data = data.with_format(None)
    types = {name: type_of(feature) for name, feature in data.features.items()}
    nested = [name for name, kind in types.items() if kind in NESTED]
    column = pick(types, "image_column", settings.image_column, nested)
    if column is None or column not in nested:
        raise UserError(
            "`image_column` must name a column of arrays [H, W] or [H, W, C], got "
            f"{listed(types if column is None else {column: types[column]})}."
        )
    label = label_column(types, settings, column) if with_labels else None
    labels = None if label is None else data[label][:]
    names = None if label is None else class_names_of(data.rename_columns({label: "label"} if label != "label" else {}))
    # Without the type, this format gives integers of 64 bits and floats of 32.
    read = data.select_columns([column]).with_format("numpy", dtype=_number_type(data.features[column], column))
    parts = [np.asarray(read[start : start + AT_ONCE][column]) for start in range(0, len(data), AT_ONCE)]
    if not parts or len({part.shape[1:] for part in parts}) > 1 or any(part.dtype == object for part in parts):
        raise UserError(f"the column {column} must hold arrays of numbers of one shape [H, W] or [H, W, C].")
    return Arrays(np.concatenate(parts), labels, names)


def _number_type(feature: Any, column: str) -> np.dtype:
    """The type of the numbers in a column of arrays."""
    inner = feature
    while isinstance(inner, list) or hasattr(inner, "feature"):  # lists within lists; older versions have plain ones
        inner = inner[0] if isinstance(inner, list) else inner.feature
    try:
        return np.dtype(inner.dtype)
    except (AttributeError, TypeError) as error:  # of a structure, and of texts
        raise UserError(f"the column {column} must hold arrays of numbers, got {feature}.") from error


def _checked(values: np.ndarray, channels_first: bool) -> np.ndarray:
    """[n, H, W, C] of numbers, or a UserError."""
    shapes = "[n, H, W] or " + ("[n, C, H, W]" if channels_first else "[n, H, W, C]")
    if values.ndim not in (3, 4) or values.size == 0:
        raise UserError(f"arrays must be {shapes}, got {list(values.shape)}.")
    if values.dtype.name not in TYPES:
        raise UserError(f"arrays must be {', '.join(TYPES[:-1])} or {TYPES[-1]}, got {values.dtype}: convert them.")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.ndim == 3:
        values = values[..., None]
    elif channels_first:
        values = values.transpose(0, 2, 3, 1)
    for start in range(0, len(values), AT_ONCE):
        part = values[start : start + AT_ONCE]
        with np.errstate(over="ignore"):
            finite = np.isfinite(part.astype(np.float32)).reshape(len(part), -1).all(1)
        if not finite.all():
            number = start + int(np.flatnonzero(~finite)[0])
            raise UserError(
                f"arrays must hold finite numbers that float32 can hold, and number {number} does not: mend or "
                "remove it."
            )
    return values
