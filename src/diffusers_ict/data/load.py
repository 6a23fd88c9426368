"""Training images, decoded once: `datasets` decodes them in processes and keeps them in its Arrow cache."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor

from ..class_names import normal
from ..errors import LabelsError, UserError, first_line
from ..formulas.preconditioning import SIGMA_DATA
from ..normalization import Normalization
from .arrays import normalised, read_arrays
from .dataset import Images, fingerprint_of
from .npz import read_npz
from .own_output import check_apart
from .pairs import check_crops, form_of_conditions, of_conditions, of_targets, read_partners
from .rows import StoredRows, read_rows
from .settings import DataSettings
from .sources import Stored, read_dataset, read_folder, refuse
from .survey import all_problems
from .transform import PictureFormat

LAYOUT = 3  # to be raised when the same pictures are decoded to other bytes than before
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
SURVEYED = 20_000  # pictures that are opened, at even distances, to tell all that is wrong with them
EACH = 500  # pictures that are worth a process
BLOCK = 1 << 23  # bytes of decoded images that are written at once
STORED = 1 << 28  # bytes of pictures that are read at once
MOST_CLASSES = 100_000  # larger numbers are names of images, and no network has room for as many classes
NUMBER, BYTES, TEXT = (datasets.Value(name) for name in ("int32", "binary", "string"))
DECODED = datasets.Features({"pixels": BYTES, "width": NUMBER, "height": NUMBER, "mode": TEXT})


def load_images(
    settings: DataSettings | None = None,
    *,
    dataset: datasets.Dataset | None = None,
    class_conditional: bool = False,
    accelerator: Accelerator | None = None,
    normalization: Normalization | None = None,
    **fields: Any,
) -> Images:
    """Read a data set.

    Args:
        settings: which images, and how they are read; by default `DataSettings(**fields)`, so that `dataset_name`,
            `train_data_dir`, `resolution`, `image_mode` and so on can be given by themselves.
        dataset: one that is open already, with a column of images, instead of `dataset_name` or `train_data_dir`.
        class_conditional: read labels too.
        normalization: of a model that draws arrays, which are then read instead of pictures, and scaled by it.
        accelerator: of its processes, one on each machine decodes, and the others read what it cached.

    Images that are enlarged, an alpha channel that nobody asked for, a single class, and sub-folders named like splits
    give a warning.

    Raises:
        UserError: nothing there, no images, mixed channels, a broken file, labels missing or out of range, or settings
            that mean nothing for this data.
    """
    settings = settings or DataSettings(**fields)
    if settings.normalize is not None or normalization is not None:
        return _load_arrays(settings, dataset, class_conditional, normalization)
    refuse(settings, "pictures, without `normalize`", "channels_first")
    form = settings.form  # which a mistake in the settings ends before data are fetched
    if settings.image_cache_dir:
        check_apart(settings, "image_cache_dir", settings.image_cache_dir)
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1 if accelerator is None else accelerator.num_processes))
    with nullcontext() if accelerator is None else accelerator.local_main_process_first():
        stored = _open(settings, class_conditional, dataset)
        count = len(stored.pictures)
        if count == 0:
            raise UserError("the data set holds no images; check its path and `image_column`.")
        labels, classes = None, None
        check_class_names(stored.class_names or ())
        if class_conditional:  # before decoding, which may take long
            labels, classes = checked_labels(stored.labels, count, stored.class_names)
        pixels, originals = _decode(stored, form, settings, copies)
        images = Images(pixels, labels, classes, stored.class_names, originals)
        if settings.conditioning_image_column is not None:
            images.condition = _conditions_of(images, stored, settings, dataset, copies)
    _warn(images, originals, settings)
    return images


def _decode(
    stored: Stored, form: PictureFormat, settings: DataSettings, copies: int
) -> tuple[Tensor | StoredRows, Counter]:
    """Stored pictures as uint8 [n, C, H, W], and what they were: (width, height, mode)."""
    if isinstance(stored.pictures, np.ndarray):
        return _decode_array(stored.pictures, form)
    folder = settings.image_cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "diffusers-ict")
    try:
        return _decode_dataset(stored.pictures, stored.key, form, Path(folder), copies)
    except UserError as error:
        some = stored.pictures.select(range(0, len(stored.pictures), 1 + len(stored.pictures) // SURVEYED))
        if all_of_them := all_problems((row["image"] for row in some), form):
            raise UserError(all_of_them) from error
        raise


def _conditions_of(
    images: Images, targets: Stored, settings: DataSettings, dataset: datasets.Dataset | None, copies: int
) -> Images:
    """The conditions of images, in the order and in the size of these.

    Raises:
        UserError: as for images, and for conditions of another number or of other parts of the pictures.
    """
    try:
        if settings.train_data_dir:
            assert isinstance(targets.pictures, datasets.Dataset)
            stored = read_partners(settings, targets.pictures)
        else:
            stored = _open(of_conditions(settings), False, dataset)
        if len(stored.pictures) != len(images):
            raise UserError(f"there must be one for each of {len(images)} images, got {len(stored.pictures)}.")
        pixels, originals = _decode(stored, form_of_conditions(settings, images.shape), settings, copies)
    except UserError as error:
        told = str(error).replace("`image_mode`", "`conditioning_image_mode`")
        raise UserError(f"the conditions of `conditioning_image_column`: {told}") from error
    check_crops(images.originals or Counter(), originals, images.shape)
    return Images(pixels, originals=originals)


def _load_arrays(
    settings: DataSettings,
    dataset: datasets.Dataset | None,
    class_conditional: bool,
    known: Normalization | None,
) -> Images:
    """Arrays as they are, normalised: each process has them in memory."""
    _check_source(settings, dataset)
    stored = read_arrays(settings, class_conditional, dataset)
    check_class_names(stored.class_names or ())
    labels, classes = None, None
    if class_conditional:
        labels, classes = checked_labels(stored.labels, len(stored.values), stored.class_names)
    x, normalization, originals = normalised(stored.values, settings.normalize, known)
    images = Images(x, labels, classes, stored.class_names, originals, normalization)
    deviation = float(x.std()) if normalization.kind == "none" else SIGMA_DATA
    if not SIGMA_DATA / 4 <= deviation <= SIGMA_DATA * 4:
        warnings.warn(
            f"the data has a standard deviation of {deviation:.3g}, and noise levels and preconditioning are made for "
            f"{SIGMA_DATA}: give `normalize` mean-std or min-max.",
            stacklevel=3,
        )
    return images


def _check_source(settings: DataSettings, dataset: datasets.Dataset | None) -> None:
    if sum(map(bool, (dataset is not None, settings.dataset_name, settings.train_data_dir))) != 1:
        raise UserError("give the data as `dataset_name` or as `train_data_dir`, one of the two.")


def _open(settings: DataSettings, with_labels: bool, dataset: datasets.Dataset | None) -> Stored:
    _check_source(settings, dataset)
    if settings.train_data_dir:
        return read_folder(of_targets(settings), with_labels)
    if settings.dataset_name and settings.dataset_name.endswith(".npz"):
        return Stored(*read_npz(Path(settings.dataset_name), settings, with_labels)[1:])
    return read_dataset(settings, with_labels, dataset)


def _warn(images: Images, originals: Counter, settings: DataSettings) -> None:
    """Warn of what is probably not meant: enlarged images, an alpha channel that is trained, and a single class."""
    height, width = images.shape[1:]
    small = {picture: count for picture, count in originals.items() if picture[0] < width or picture[1] < height}
    least = min((picture[:2] for picture in small), key=min, default=(0, 0))
    shown = (min(least), min(least)) if height == width else least  # of a square, that of the part in the middle
    top = Path(settings.train_data_dir) if settings.train_data_dir else None
    folders = sorted(path.name for path in top.iterdir() if path.is_dir() and path.name[0] != ".") if top else []
    doubts = {
        f"{sum(small.values())} of {len(images)} images are smaller than `resolution` "
        f"{settings.resolution if height == width else f'{width}x{height}'} and are enlarged; the smallest is "
        f"{shown[0]}x{shown[1]}.": bool(small),
        "the images have four channels, the last of them alpha, and all are trained; give `image_mode` RGB to put them "
        "on a `background`, or RGBA if this is meant.": images.shape[0] == 4 and settings.image_mode is None,
        "the data has a single class, so `class_conditional` has nothing to learn; give one sub-folder or label for "
        "each class, or leave it out.": images.num_classes == 1,
        f"the sub-folders are named like splits ({', '.join(folders)}), and the images of all are read; give the "
        "folder of one split as `train_data_dir` if they are splits.": len(folders) > 1
        and {name.lower() for name in folders} <= SPLITS,
    }
    for doubt in (text for text, holds in doubts.items() if holds):
        warnings.warn(doubt, stacklevel=3)


def check_class_names(names: Sequence[str]) -> None:
    """Refuse, by a UserError, names of classes that look the same and differ only in their Unicode form."""
    if twins := [name for name, count in Counter(map(normal, names)).items() if count > 1]:
        raise UserError(
            f"classes must differ in more than the Unicode form of their names, and {twins[0]!r} is there "
            "twice: rename one, or put their images together."
        )


def checked_labels(labels: Any, count: int, names: Sequence[str] | None) -> tuple[Tensor, int]:
    """Labels of `count` images as int64 [count], and the number of classes: that of the names, or the largest plus one.

    Raises:
        LabelsError: labels that are missing, no integers, too few or too many, or out of range.
    """
    if labels is None:
        raise LabelsError(
            "classes need labels, and the data has none: a folder has one sub-folder for each class, or a metadata.csv "
            "with the columns file_name and label; other data have a column, which `label_column` names."
        )
    array = np.asarray(labels, object)
    odd = [list(array.shape)] if array.shape != (count,) else [label for label in array if type(label) is not int]
    if odd:
        raise LabelsError(
            f"labels must be one integer for each of the {count} images, got {odd[0]!r}; give another `label_column`."
        )
    least, most, limit = array.min(), array.max(), min(len(names or range(MOST_CLASSES)), MOST_CLASSES)
    if least < 0 or most >= limit:
        raise LabelsError(
            f"labels must lie within 0 and {limit - 1}, got {least} to {most}; leave out unlabelled images (often -1), "
            "and number the classes from 0."
        )
    return torch.from_numpy(array.astype(np.int64)), len(names) if names else most + 1


def _decode_array(array: np.ndarray, form: PictureFormat) -> tuple[Tensor, Counter]:
    """Arrays become bytes in memory; bytes of the right shape are taken as they are."""
    first, count = form.convert(array[0], 0), len(array)
    shape = channels, height, width = first.pixels.shape
    if np.shares_memory(first.pixels, array):
        pixels = array.reshape(count, height, width, channels).transpose(0, 3, 1, 2)
    else:
        try:
            pixels = np.empty((count, *shape), np.uint8)
        except MemoryError as error:
            raise UserError(f"{count} images of {shape} do not fit into memory: lower `resolution`.") from error
        for number in range(count):
            pixels[number] = form.convert(array[number], number).pixels
    return torch.from_numpy(pixels), Counter({first.original: count})


def _decode_dataset(
    data: datasets.Dataset, key: Any, form: PictureFormat, place: Path, copies: int
) -> tuple[Tensor | StoredRows, Counter]:
    """Stored pictures become rows of bytes in Arrow files, which later runs read again.

    Args:
        key: what the pictures are; place: folder of the files; copies: processes of this machine that read them.

    Raises:
        UserError: a picture cannot be read or differs in shape from the first, or the file cannot be written.
    """
    shape = form.convert(data[0]["image"], 0).pixels.shape
    name = "images-" + fingerprint_of([LAYOUT, PIL.__version__, key, form.facts()])
    rows = max(1, min(BLOCK // int(np.prod(shape)), STORED * len(data) // (data.data.nbytes + 1)))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1  # others would run the main script again
    decode = partial(
        data.map,
        convert_rows,
        fn_kwargs={"form": form, "shape": shape},
        with_indices=True,
        batched=True,
        batch_size=rows,
        writer_batch_size=rows,
        num_proc=processes if (processes := min(cores, len(data) // EACH)) > 1 else None,
        remove_columns=data.column_names,
        features=DECODED,
        new_fingerprint=name,
        cache_file_name=str(place / f"{name}.arrow"),
        desc="decoding",
    )

    def read(decoded: datasets.Dataset) -> tuple[Tensor | StoredRows, Counter]:
        return read_rows([file["filename"] for file in decoded.cache_files], shape, len(data), copies)

    try:
        if any(place.glob(f"{name}*.arrow")):
            try:
                return read(decode())
            except (OSError, pa.ArrowException):
                warnings.warn(
                    f"the file {name}.arrow in {place} is not as it was written, so the images are decoded again.",
                    stacklevel=3,
                )
        return read(decode(load_from_cache_file=False))
    except OSError as error:
        raise UserError(f"`image_cache_dir` {place} cannot hold the images: {error.strerror or error}.") from error
    except RuntimeError as error:  # of `datasets`: a process is gone
        raise UserError(f"the images cannot be decoded: {first_line(error)}; is there enough memory?") from error


def convert_rows(
    batch: dict[str, list], indices: list[int], form: PictureFormat, shape: tuple[int, ...]
) -> dict[str, list]:
    """Rows of `DECODED` for stored pictures: a function for `datasets.Dataset.map`, called in its processes.

    Raises:
        UserError: a picture cannot be read, or is not like the first one, whose shape is [C, H, W].
    """
    pictures = [form.convert(stored, number, shape) for number, stored in zip(indices, batch["image"])]
    rows = [(picture.pixels.tobytes(), *picture.original) for picture in pictures]
    return {name: list(values) for name, values in zip(DECODED, zip(*rows))}
