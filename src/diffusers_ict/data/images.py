"""Training images, decoded once into one uint8 tensor.

Decoding small images takes 0.2 ms of a core for each, more than a GPU waits for, so images are decoded when the run
begins and kept as bytes: 154 MB for CIFAR-10, 15.7 GB for ImageNet 64x64. `Images.to` chooses where they live; data
larger than memory are mapped from a file.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from .cache import cache_key, cached, in_temporary_file
from .decode import Decoded, decode
from .folder import read_folder
from .hub_data import check_hub_settings, read_dataset
from .labels import checked_labels
from .npz import read_npz
from .originals import Originals
from .picture_format import PictureFormat
from .source import Source

BLOCK = 1 << 24  # bytes hashed at once


@dataclass(frozen=True)
class Images(Dataset):
    """A data set in memory.

    Attributes:
        pixels: uint8 [n, C, H, W]; to be read only, because they may lie in a file that other runs read too.
        labels: int64 [n] in 0 .. num_classes - 1, or None.
        num_classes: or None.
        class_names: one for each class where the data set names them.
        originals: what the pictures were before they were converted, where it is known.
    """

    pixels: Tensor
    labels: Tensor | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    originals: Originals | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"x": self.pixels[index]}
        return item if self.labels is None else {**item, "label": int(self.labels[index])}

    def __getitems__(self, indices) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        pixels, labels = self.part(rows)
        return {"x": pixels} if labels is None else {"x": pixels, "label": labels}

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
        moved = replace(self, pixels=self.pixels.to(device), labels=labels)
        return moved._knowing(vars(self).get("pixels_sha256"))

    def batch(self, indices: Tensor, flips: Tensor | None, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], float32 [B, C, H, W], and labels [B], on `device`; those in `flips` are mirrored."""
        pixels, labels = self.part(indices.to(self.pixels.device))
        return to_unit(pixels, flips, device), None if labels is None else labels.to(device)

    def part(self, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixels and labels of some images, uint8 [B, C, H, W] and int64 [B] or None."""
        return self.pixels[rows], None if self.labels is None else self.labels[rows]

    @property
    def count(self) -> int:
        """Images of the data set."""
        return len(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes

    @property
    def examples(self) -> "Images":
        """Images to show beside samples."""
        return self

    def fingerprint(self) -> str:
        """What the images are, in 32 hexadecimal digits: the same for the same pixels, shape, labels and class names.

        Where they were read from, and the device, are no part of it. The pixels are hashed on the first call alone.
        """
        labels = None if self.labels is None else _sha256(self.labels)
        facts = [list(self.pixels.shape), self.pixels_sha256, labels, self.class_names]
        return fingerprint_of(facts)

    @cached_property
    def pixels_sha256(self) -> str:
        """SHA-256 of the bytes of `pixels`, in their order."""
        return _sha256(self.pixels)

    def _knowing(self, sha256: str | None) -> "Images":
        """These images, which will not hash pixels of a known SHA-256 again."""
        if sha256 is not None:
            vars(self)["pixels_sha256"] = sha256
        return self


def to_unit(pixels: Tensor, flips: Tensor | None, device: torch.device | str) -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [-1, 1] on `device`; those in `flips` are mirrored."""
    x = pixels.to(device)
    x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()
    return x if flips is None else torch.where(flips.to(device)[:, None, None, None], x.flip(-1), x)


def fingerprint_of(facts: Any) -> str:
    """SHA-256 of JSON types, in 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def load_images(
    *,
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
    """Read a data set into memory.

    Args:
        dataset_name: a data set on the Hub, a folder made by `save_to_disk`, or a local .parquet, .arrow or .npz file
            (.npz: an array of images, [n, H, W] or [n, H, W, C] or [n, C, H, W], and one of labels).
        dataset_config_name, dataset_split: of a Hub data set, or of a local copy of one.
        train_data_dir: a folder of images, at any depth; for labels, one sub-folder for each class.
        image_column, label_column: where they are not the only ones of their kind.
        image_mode: convert every image to "L", "RGB" or "RGBA"; by default they must all agree.
        background: colour behind transparent pixels where `image_mode` has no alpha: a name, or #rrggbb.
        class_conditional: read labels too.
        resolution: side of the square images in pixels; by default that of the data.
        center_crop: cut the largest central square out of images that are not square.
        image_cache_dir: keep decoded images in a file there instead of in memory; later runs map it.

    Images that are enlarged, an alpha channel that nobody asked for, and a single class give a warning.

    Raises:
        UserError: nothing there, no images, mixed channels, a broken file, labels missing or out of range, or settings
            that mean nothing for this data.
    """
    if bool(dataset_name) == bool(train_data_dir):
        raise UserError("give the data as `dataset_name` or as `train_data_dir`, one of the two.")
    form = PictureFormat(resolution, center_crop, image_mode, background)
    config, split, columns = dataset_config_name, dataset_split, (image_column, label_column)
    check_hub_settings(dataset_name, train_data_dir, config, split, *columns)
    if not dataset_name:
        source = read_folder(Path(train_data_dir or ""), class_conditional)
    elif dataset_name.endswith(".npz"):
        source = read_npz(Path(dataset_name), *columns, class_conditional)
    else:
        source = read_dataset(dataset_name, config, split, *columns, class_conditional)
    return _read(source, form, class_conditional, image_cache_dir)


def read_images(
    source: Source,
    *,
    class_conditional: bool = False,
    resolution: int | None = None,
    center_crop: bool = False,
    image_mode: str | None = None,
    background: str = "white",
    image_cache_dir: str | None = None,
) -> Images:
    """Decode the pictures of any source; arguments, warnings and errors are those of `load_images`.

    A source without an identity is decoded anew each time, with `image_cache_dir` into a temporary file.
    """
    form = PictureFormat(resolution, center_crop, image_mode, background)
    return _read(source, form, class_conditional, image_cache_dir)


def _read(source: Source, form: PictureFormat, class_conditional: bool, folder: str | None) -> Images:
    labels, classes, names = None, None, None
    if class_conditional and source.count > 0:  # before decoding, which may take long
        if source.labels is None:
            raise UserError(
                "`class_conditional` needs labels and the data has none; give `label_column`, or one sub-folder for "
                "each class."
            )
        names = source.class_names
        labels, classes = checked_labels(source.labels, source.count, names)
    decoded = _decode(source, form, folder)
    _warn_of_form(decoded, form)
    if classes == 1:
        warnings.warn(
            "the data has a single class, so `class_conditional` has nothing to learn; give one sub-folder or label "
            "for each class, or leave it out.",
            stacklevel=3,
        )
    return Images(_as_tensor(decoded.pixels), labels, classes, names, decoded.originals)._knowing(decoded.sha256)


def _decode(source: Source, form: PictureFormat, folder: str | None) -> Decoded:
    """The pixels of a source: in memory, or in a file in a folder."""
    if folder is None:
        return decode(source, form)
    if source.identity is None:
        return decode(source, form, partial(in_temporary_file, Path(folder)))
    return cached(Path(folder), cache_key(source.identity(), form), partial(decode, source, form))


def _warn_of_form(decoded: Decoded, form: PictureFormat) -> None:
    """Say what is probably not meant: enlarged images, and an alpha channel that is trained."""
    count, channels = decoded.pixels.shape[:2]
    enlarged, smallest = decoded.originals.enlarged, min(decoded.originals.smallest)
    if enlarged:
        warnings.warn(
            f"{enlarged} of {count} images are smaller than `resolution` {form.resolution} and are enlarged; "
            f"the smallest is {smallest}x{smallest}.",
            stacklevel=4,
        )
    if channels == 4 and form.mode is None:
        warnings.warn(
            "the images have four channels, the last of them alpha, and all are trained; give `image_mode` RGB to put "
            "them on a `background`, or RGBA if this is meant.",
            stacklevel=4,
        )


def _sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, read in blocks so that no copy of all of them is made."""
    found = hashlib.sha256()
    for block in tensor.split(max(1, BLOCK * len(tensor) // max(1, tensor.nbytes))):
        found.update(block.cpu().contiguous().numpy().data)
    return found.hexdigest()


def _as_tensor(pixels: np.ndarray) -> Tensor:
    """Without PyTorch's warning of pixels that are mapped read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels)
