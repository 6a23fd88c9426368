"""Training images, decoded once into one uint8 tensor.

Decoding tops out near 12,000 small images a second and core, below a GPU's appetite, so images are decoded when the
run begins and kept as bytes: 154 MB for CIFAR-10, 15.7 GB for ImageNet 64x64. `Images.to` chooses where they live; data
larger than memory are mapped from a file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .decode import MODES, decode
from .npz import read_npz
from .source import Source


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
        _, channels, height, width = self.pixels.shape
        return channels, height, width

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
    dataset_split: str = "train",
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_mode: str | None = None,
    class_conditional: bool = False,
    resolution: int | None = None,
    center_crop: bool = False,
    image_cache_dir: str | None = None,
) -> Images:
    """Read a data set into memory.

    Args:
        dataset_name: a data set on the Hub, a folder made by `save_to_disk`, or a local .parquet, .arrow or .npz file
            (.npz: an array of images, uint8 [n, H, W] or [n, H, W, C] or [n, C, H, W], and one of labels).
        dataset_config_name, dataset_split: of a Hub data set.
        train_data_dir: a folder of images; for labels, one sub-folder for each class.
        image_column, label_column: where they are not the only ones of their kind.
        image_mode: convert every image to "L", "RGB" or "RGBA"; by default they must all agree.
        class_conditional: read labels too.
        resolution: side of the square images in pixels; by default that of the data.
        center_crop: cut the largest central square out of images that are not square.
        image_cache_dir: keep decoded images in a temporary file there instead of in memory.

    Raises:
        UserError: nothing there, no images, mixed channels, a broken file, or labels missing or out of range.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise UserError("give the data as `dataset_name` or as `train_data_dir`, one of the two.")
    if image_mode not in (None, *MODES):
        raise UserError(f"`image_mode` must be one of {', '.join(MODES)}, got {image_mode}.")
    if dataset_name is not None and dataset_name.endswith(".npz"):
        source = read_npz(Path(dataset_name), image_column, label_column)
    else:
        from .hub_data import read_dataset  # which needs the library `datasets`

        source = read_dataset(
            dataset_name,
            dataset_config_name,
            train_data_dir,
            dataset_split,
            image_column,
            label_column,
            class_conditional,
        )
    return read_images(
        source,
        class_conditional=class_conditional,
        resolution=resolution,
        center_crop=center_crop,
        image_mode=image_mode,
        image_cache_dir=image_cache_dir,
    )


def read_images(
    source: Source,
    *,
    class_conditional: bool = False,
    resolution: int | None = None,
    center_crop: bool = False,
    image_mode: str | None = None,
    image_cache_dir: str | None = None,
) -> Images:
    """Decode the pictures of any source; arguments and errors are those of `load_images`."""
    pixels = decode(source, resolution, center_crop, image_mode, image_cache_dir)
    if not class_conditional:
        return Images(pixels)
    if source.labels is None:
        raise UserError(
            "`class_conditional` needs labels and the data has none; give `label_column`, or one sub-folder for each "
            "class."
        )
    labels, classes = _checked_labels(np.asarray(source.labels), source.class_names)
    return Images(pixels, labels, classes, source.class_names)


def _checked_labels(labels: np.ndarray, names: tuple[str, ...] | None) -> tuple[Tensor, int]:
    """Labels as int64, and the number of classes."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be integers from 0, got {labels.dtype}; give another `label_column`.")
    classes = len(names) if names else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"labels must lie within 0 and {classes - 1}, got {labels.min()} to {labels.max()}; unlabelled images "
            "(often -1) have to be left out."
        )
    return torch.from_numpy(labels.astype(np.int64)), classes
