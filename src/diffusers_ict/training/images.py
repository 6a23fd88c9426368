"""Training images, decoded once into one uint8 tensor.

Decoding tops out near 12,000 small images a second and core, below a GPU's appetite, so images are decoded when the
run begins and kept as bytes: 154 MB for CIFAR-10, 15.7 GB for ImageNet 64x64. Where they live is `Images.to`'s choice;
data larger than memory are mapped from a file.
"""

import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        pixels: uint8 [n, C, H, W].
        labels: int64 [n] in 0 .. num_classes - 1, or None.
        num_classes: or None.
        class_names: one for each class where the data set names them.
    """

    pixels: Tensor
    labels: Tensor | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device, if they fit in half of its free memory; else as they are."""
        device = torch.device(device)
        if device.type == "cuda" and self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels, self.num_classes, self.class_names)

    def batch(self, indices: Tensor, flips: Tensor | None, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], float32 [B, C, H, W], and labels [B], on `device`; those in `flips` are mirrored."""
        indices = indices.to(self.pixels.device)
        x = self.pixels[indices].to(device).float() / 127.5 - 1
        if flips is not None:
            x = torch.where(flips.to(device)[:, None, None, None], x.flip(-1), x)
        return x, None if self.labels is None else self.labels[indices].to(device)


def load_images(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    class_conditional: bool = False,
    resolution: int | None = None,
    center_crop: bool = False,
    image_mode: str | None = None,
    cache_dir: str | None = None,
) -> Images:
    """Read a data set into memory.

    Args:
        dataset_name: a data set on the Hub, a folder made by `save_to_disk`, or a local .parquet, .arrow or .npz file
            (.npz: an array of images, uint8 [n, H, W] or [n, H, W, C] or [n, C, H, W], and one of labels).
        dataset_config_name: configuration of a Hub data set.
        train_data_dir: a folder of images; for labels, one sub-folder for each class.
        split: of a Hub data set.
        image_column, label_column: where they are not the only ones of their kind.
        class_conditional: read labels too.
        resolution: side of the square images in pixels; by default that of the data.
        center_crop: cut the largest central square out of images that are not square.
        image_mode: convert every image to "L", "RGB" or "RGBA"; by default they must all agree.
        cache_dir: keep decoded images in a temporary file there instead of in memory.

    Raises:
        UserError: nothing there, no images, mixed channels, a broken file, or labels missing or out of range.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise UserError("give the data as --dataset_name or as --train_data_dir, one of the two.")
    if image_mode not in (None, *CHANNELS):
        raise UserError(f"image_mode must be one of {', '.join(CHANNELS)}, got {image_mode}.")
    if dataset_name is not None and dataset_name.endswith(".npz"):
        pictures, labels, names, where = _read_npz(Path(dataset_name), image_column, label_column)
        count = len(pictures)
    else:
        from .hub_data import read_dataset

        pictures, count, labels, names, where = read_dataset(
            dataset_name,
            dataset_config_name,
            train_data_dir,
            split,
            image_column,
            label_column,
            class_conditional,
        )
    pixels = _decode(pictures, count, where, resolution, center_crop, image_mode, cache_dir)
    if not class_conditional:
        return Images(pixels)
    if labels is None:
        raise UserError(
            "--class_conditional needs labels and the data has none; give --label_column, or one sub-folder per class."
        )
    return Images(pixels, *_checked_labels(np.asarray(labels), names), names)


def _checked_labels(labels: np.ndarray, names: tuple[str, ...] | None) -> tuple[Tensor, int]:
    """Labels as int64 and the number of classes."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be integers from 0, got {labels.dtype}; give another --label_column.")
    classes = len(names) if names else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"labels must lie within 0 and {classes - 1}, got {labels.min()} to {labels.max()}; unlabelled images "
            "(often -1) have to be left out."
        )
    return torch.from_numpy(labels.astype(np.int64)), classes


def _decode(
    pictures: Iterable[Image.Image | np.ndarray],
    count: int,
    where: Callable[[int], str],
    resolution: int | None,
    center_crop: bool,
    mode: str | None,
    folder: str | None,
) -> Tensor:
    """`count` pictures of any size -> uint8 [n, C, resolution, resolution]. `where(i)` names the i-th in messages.

    Every image is written to its place at once, so that no more memory is taken than the result needs; none of it with
    a folder for the result to be mapped from.
    """
    pixels: np.ndarray | None = None
    iterator = iter(pictures)
    for number in range(count):

        def name(number: int = number) -> str:
            """Of the picture at hand; looked up only for a message, because it may mean reading the row again."""
            return where(number)

        try:
            array = _as_array(next(iterator), name, resolution, center_crop, mode).transpose(2, 0, 1)
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"the image {name()} cannot be read ({error}); remove or replace the file.") from error
        if pixels is None:
            pixels = _allocate((count, *array.shape), folder)
        elif array.shape != pixels.shape[1:]:
            raise UserError(_mismatch(pixels.shape[1:], array.shape, name()))
        pixels[number] = array
    if pixels is None:
        raise UserError("the data set holds no images; check its path and --image_column.")
    return torch.from_numpy(pixels)


def _allocate(shape: tuple[int, ...], folder: str | None) -> np.ndarray:
    """Room for bytes in memory, or in a file in `folder` that is gone when nobody uses it any more.

    Raises:
        UserError: the folder cannot be written, or has no room.
    """
    if folder is None:
        return np.empty(shape, np.uint8)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is to be told now, and not by a signal later
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise UserError(f"--image_cache_dir {folder} cannot hold the images: {error.strerror or error}.") from error


def _as_array(
    picture, name: Callable[[], str], resolution: int | None, center_crop: bool, mode: str | None
) -> np.ndarray:
    """One picture as uint8 [side, side, C]."""
    if isinstance(picture, np.ndarray) and mode is None:
        height, width = picture.shape[:2]
        if height == width == (resolution or height):  # nothing to resize: any number of channels will do
            return picture.reshape(height, width, -1)
    array = np.asarray(_square(_as_pil(picture, mode), name, resolution, center_crop))
    return array.reshape(*array.shape[:2], -1)


def _mismatch(first: tuple[int, ...], other: tuple[int, ...], name: str) -> str:
    """Of shapes [C, H, W]."""
    if first[0] != other[0]:
        return (
            f"all images must have the same number of channels: the first has {first[0]} and {name} has {other[0]}; "
            "convert them with --image_mode L, RGB or RGBA."
        )
    return (
        f"all images must have the same size: the first is {first[2]}x{first[1]} and {name} is {other[2]}x{other[1]}; "
        "give --resolution."
    )


def _as_pil(picture: Image.Image | np.ndarray, mode: str | None) -> Image.Image:
    """A PIL image in mode L, RGB or RGBA. Palettes are decoded to what they stand for."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    picture.load()
    if mode:
        return picture.convert(mode)
    if picture.mode == "P":
        return picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode not in CHANNELS:
        raise ValueError(f"its mode {picture.mode} is not one of {', '.join(CHANNELS)}: convert with --image_mode")
    return picture


def _square(picture: Image.Image, name: Callable[[], str], resolution: int | None, center_crop: bool) -> Image.Image:
    """Crop to a square and resize with antialiasing."""
    width, height = picture.size
    if width != height:
        if not center_crop:
            raise UserError(
                f"images must be square, and {name()} is {width}x{height}: add --center_crop to cut out the middle."
            )
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if resolution is not None and picture.width != resolution:
        picture = picture.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return picture


def _read_npz(path: Path, image_column: str | None, label_column: str | None):
    """(images as [H, W] or [H, W, C] arrays, labels or None, no names, how to name the i-th)."""
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
    labels = _pick(
        arrays,
        label_column,
        lambda a: a.ndim == 1 and len(a) == len(images) and np.issubdtype(a.dtype, np.integer),
        "label_column",
        path,
    )
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    return images, labels, None, lambda i: f"number {i} of {path.name}"


def _pick(arrays: dict[str, np.ndarray], name: str | None, suits, flag: str, path: Path) -> np.ndarray | None:
    """The named array, or the only one that suits."""
    if name is not None:
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r} for --{flag}; it has {', '.join(arrays)}.")
        return arrays[name]
    fitting = [key for key, array in arrays.items() if suits(array)]
    if len(fitting) > 1:
        raise UserError(f"{path} has several arrays that could be meant by --{flag}: {', '.join(fitting)}; name one.")
    return arrays[fitting[0]] if fitting else None
