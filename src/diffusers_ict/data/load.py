"""Training images, decoded once: `datasets` decodes them in processes and keeps them in its Arrow cache."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import pyarrow as pa
import torch
from torch import Tensor

from ..errors import UserError, first_line
from .dataset import Images, Originals, fingerprint_of
from .npz import read_npz
from .sources import Pictures, check_settings, local_state, open_dataset, read_dataset, read_folder
from .transform import Converted, PictureFormat

LAYOUT = 3  # to be raised when the same pictures are decoded to other bytes than before
EACH = 500  # pictures that are worth a process
BLOCK = 1 << 25  # bytes of decoded images that are written at once
STORED = 1 << 28  # bytes of pictures that are read at once
MOST_CLASSES = 100_000  # larger numbers are names of images, and no network has room for as many classes
NUMBER, BYTES, TEXT = (datasets.Value(name) for name in ("int32", "binary", "string"))
DECODED = datasets.Features({"pixels": BYTES, "width": NUMBER, "height": NUMBER, "mode": TEXT})


def load_images(
    *,
    dataset: datasets.Dataset | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_mode: str | None = None,
    background: str = "white",
    class_conditional: bool = False,
    resolution: int | None = None,
    center_crop: bool = False,
    image_cache_dir: str | None = None,
) -> Images:
    """Read a data set.

    Args:
        dataset: one that is open already, with a column of images.
        dataset_name: a data set on the Hub, a folder made by `save_to_disk`, or a local .parquet, .arrow or .npz file
            (.npz: an array of images, [n, H, W] or [n, H, W, C] or [n, C, H, W], and one of labels).
        dataset_config_name, dataset_split: of a Hub data set, or of a local copy of one.
        train_data_dir: a folder of images, at any depth; for labels, one sub-folder for each class.
        image_column, label_column: where they are not the only ones of their type.
        image_mode: convert every image to "L", "RGB" or "RGBA"; by default they must all agree.
        background: colour behind transparent pixels where `image_mode` has no alpha: a name, or #rrggbb.
        class_conditional: read labels too.
        resolution: side of the square images in pixels; by default that of the data.
        center_crop: cut the largest central square out of images that are not square.
        image_cache_dir: where decoded images are kept, by default in the cache of the `datasets` library.

    Images that are enlarged, an alpha channel that nobody asked for, and a single class give a warning.

    Raises:
        UserError: nothing there, no images, mixed channels, a broken file, labels missing or out of range, or settings
            that mean nothing for this data.
    """
    if sum(map(bool, (dataset is not None, dataset_name, train_data_dir))) != 1:
        raise UserError("give the data as `dataset_name` or as `train_data_dir`, one of the two.")
    form = PictureFormat(resolution, center_crop, image_mode, background)
    where, columns = (dataset_config_name, dataset_split), (image_column, label_column)
    check_settings(dataset_name, train_data_dir, *where, *columns)
    if train_data_dir:
        pictures = read_folder(Path(train_data_dir), class_conditional)
    elif dataset_name and dataset_name.endswith(".npz"):
        pictures = read_npz(Path(dataset_name), *columns, class_conditional)
    else:
        files = local_state(dataset_name) if dataset_name else []
        data: Any = open_dataset(dataset_name, *where) if dataset_name else dataset
        key = [*files, *where] if files else data._fingerprint
        pictures = read_dataset(data, *columns, class_conditional, key)
    return _read(pictures, form, class_conditional, image_cache_dir)


def _read(pictures: Pictures, form: PictureFormat, class_conditional: bool, folder: str | None) -> Images:
    if len(pictures.stored) == 0:
        raise UserError("the data set holds no images; check its path and `image_column`.")
    labels, classes, names = None, None, None
    if class_conditional:  # before decoding, which may take long
        if pictures.labels is None:
            raise UserError(f"`class_conditional` needs labels and the data has none; {pictures.label_remedy}.")
        names = pictures.class_names
        labels, classes = checked_labels(pictures.labels, len(pictures.stored), names)
    if isinstance(pictures.stored, np.ndarray):
        blocks, originals = _decode_array(pictures.stored, pictures.where, form)
    else:
        place = Path(folder or os.path.join(datasets.config.HF_DATASETS_CACHE, "diffusers-ict"))
        blocks, originals = _decode_dataset(pictures.stored, pictures.column, pictures.key, form, place)
    images = Images(blocks, labels, classes, names, originals)
    for doubt in _doubts(images, originals, form):
        warnings.warn(doubt, stacklevel=3)
    return images


def _doubts(images: Images, originals: Originals, form: PictureFormat) -> list[str]:
    """What is probably not meant: enlarged images, an alpha channel that is trained, and a single class."""
    smallest, doubts = min(originals.smallest), []
    if originals.enlarged:
        doubts.append(
            f"{originals.enlarged} of {len(images)} images are smaller than `resolution` {form.resolution} and are "
            f"enlarged; the smallest is {smallest}x{smallest}."
        )
    if images.shape[0] == 4 and form.mode is None:
        doubts.append(
            "the images have four channels, the last of them alpha, and all are trained; give `image_mode` RGB to put "
            "them on a `background`, or RGBA if this is meant."
        )
    if images.num_classes == 1:
        doubts.append(
            "the data has a single class, so `class_conditional` has nothing to learn; give one sub-folder or label "
            "for each class, or leave it out."
        )
    return doubts


def checked_labels(labels: Sequence[int] | np.ndarray, count: int, names: Sequence[str] | None) -> tuple[Tensor, int]:
    """Labels of `count` images as int64 [count], and the number of classes: that of the names, or the largest plus one.

    Raises:
        UserError: labels that are no integers, too few or too many, or out of range.
    """
    try:
        array = np.asarray(labels)
        fault = "" if array.shape == (count,) else str(list(array.shape))
    except ValueError:
        fault = "lists of different lengths"
    if not fault and array.dtype.kind not in "iu":
        odd = [value for value in array.tolist() if not isinstance(value, int) or isinstance(value, bool)]
        fault = repr(odd[0]) if odd else "numbers that are too large"
    if fault:
        raise UserError(
            f"labels must be one integer for each of the {count} images, got {fault}; give another `label_column`."
        )
    least, most = int(array.min()), int(array.max())
    limit = min(len(names) if names else MOST_CLASSES, MOST_CLASSES)
    if least < 0 or most >= limit:
        raise UserError(
            f"labels must lie within 0 and {limit - 1}, got {least} to {most}; leave out unlabelled images (often -1), "
            "and number the classes from 0."
        )
    return torch.from_numpy(array.astype(np.int64)), len(names) if names else most + 1


def _decode_array(array: np.ndarray, where: str, form: PictureFormat) -> tuple[list[Tensor], Originals]:
    """Arrays become bytes in memory; bytes of the right shape are taken as they are."""

    def convert(number: int) -> Converted:
        return form.convert(array[number], lambda: f"number {number}{where}")

    first, count = convert(0), len(array)
    shape = channels, height, width = first.pixels.shape
    if np.shares_memory(first.pixels, array):
        pixels = array.reshape(count, height, width, channels).transpose(0, 3, 1, 2)
    else:
        try:
            pixels = np.empty((count, *shape), np.uint8)
        except (MemoryError, ValueError) as error:
            raise UserError(
                f"{count} images of {width}x{height} do not fit into memory: lower `resolution`."
            ) from error
        for number in range(count):
            pixels[number] = convert(number).pixels
    return [torch.from_numpy(pixels)], Originals.of(Counter({(first.size, first.mode): count}), height)


def _decode_dataset(
    data: datasets.Dataset, column: str, key: Any, form: PictureFormat, place: Path
) -> tuple[list[Tensor], Originals]:
    """Stored pictures become rows of bytes in an Arrow file, which is mapped; later runs read it again.

    Raises:
        UserError: a picture cannot be read or differs in shape from the first, or the file cannot be written.
    """
    first = data[0][column]
    shape = form.convert(first, partial(name_of, 0, first)).pixels.shape
    name = "images-" + fingerprint_of([LAYOUT, PIL.__version__, key, asdict(form)])
    rows = max(1, min(BLOCK // int(np.prod(shape)), STORED * len(data) // (data.data.nbytes + 1)))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1  # others would run the main script again
    decode = partial(
        data.map,
        convert_rows,
        fn_kwargs={"column": column, "form": form, "shape": shape},
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
    try:
        if any(place.glob(f"{name}*.arrow")):
            try:
                return _mapped(decode(), shape, len(data))
            except (OSError, pa.ArrowException):
                warnings.warn(
                    f"the file {name}.arrow in {place} is not as it was written, so the images are decoded again.",
                    stacklevel=4,
                )
        return _mapped(decode(load_from_cache_file=False), shape, len(data))
    except OSError as error:
        raise UserError(f"`image_cache_dir` {place} cannot hold the images: {error.strerror or error}.") from error
    except RuntimeError as error:  # of `datasets`: a process is gone
        raise UserError(f"the images cannot be decoded: {first_line(error)}; is there enough memory?") from error


def convert_rows(
    batch: dict[str, list], indices: list[int], column: str, form: PictureFormat, shape: tuple[int, ...]
) -> dict[str, list]:
    """Rows of `DECODED` for stored pictures: a function for `datasets.Dataset.map`, called in its processes.

    Raises:
        UserError: a picture cannot be read, or is not like the first one, whose shape is [C, H, W].
    """
    names = [partial(name_of, index, stored) for index, stored in zip(indices, batch[column])]
    pictures = [form.convert(stored, name) for stored, name in zip(batch[column], names)]
    for picture, name in zip(pictures, names):
        check_shape(picture, shape, name())
    rows = [(picture.pixels.tobytes(), *picture.size, picture.mode) for picture in pictures]
    return {name: list(values) for name, values in zip(DECODED, zip(*rows))}


def check_shape(picture: Converted, shape: tuple[int, ...], name: str) -> None:
    """Check that a picture is like the first one, whose shape is [C, H, W].

    Raises:
        UserError: it has another size, or other channels.
    """
    if picture.pixels.shape != tuple(shape):
        expected, got = (f"{width}x{height} of {channels}" for channels, height, width in (shape, picture.pixels.shape))
        raise UserError(
            f"all images must have the same size and number of channels: the first is {expected}, and {name} is {got}; "
            "give `resolution` and `image_mode`."
        )


def name_of(index: int, stored: Any) -> str:
    """A picture's name in messages: the path of its file, where it has one."""
    path = stored.get("path") if isinstance(stored, dict) else None
    return os.fsencode(path).decode("utf-8", "backslashreplace") if path else f"number {index}"


def _mapped(decoded: datasets.Dataset, shape: tuple[int, ...], count: int) -> tuple[list[Tensor], Originals]:
    """The rows of `convert_rows` as tensors that share the memory of their file, and what the pictures were.

    Raises:
        OSError: the file holds other images.
    """
    size, blocks = int(np.prod(shape)), []
    for chunk in decoded.data.column("pixels").chunks:
        _, offsets, content = chunk.buffers()
        first, last = np.frombuffer(offsets, np.int32)[[chunk.offset, chunk.offset + len(chunk)]]
        if last - first != len(chunk) * size:
            raise OSError("its images are of another size")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            blocks.append(torch.from_numpy(np.frombuffer(content, np.uint8, last - first, first)).view(-1, *shape))
    if sum(map(len, blocks)) != count:
        raise OSError("some of its images are missing")
    width, height, mode = (decoded.data.column(name).to_pylist() for name in ("width", "height", "mode"))
    return blocks, Originals.of(Counter(zip(zip(width, height), mode)), shape[1])
