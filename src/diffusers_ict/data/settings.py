"""The settings that say which images to read and how: the same flags in training, evaluation and inspection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..settings import setting

if TYPE_CHECKING:
    from .transform import PictureFormat


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, and how they are read; the fields are the arguments of `load_images`."""

    dataset_name: str | None = setting(
        None, "Hub data set, save_to_disk folder, or .parquet, .arrow, .tar, .npz or .npy file"
    )
    dataset_config_name: str | None = setting(None, "configuration of the Hub data set")
    dataset_split: str = setting("train", "split of the Hub data set")
    train_data_dir: str | None = setting(None, "folder of images; one sub-folder for each class if class-conditional")
    image_column: str | None = setting(None, "column of the images, if there are several")
    label_column: str | None = setting(None, "column of the labels, if there are several")
    conditioning_image_column: str | None = setting(
        None,
        "pairs: column of the conditions, the images that the model is given; with train_data_dir, their sub-folder. "
        "Each has the file name of its image, which is in the sub-folder target, or in the one that image_column names",
    )
    image_mode: str | None = setting(None, "convert every image to this mode", choices=("L", "RGB", "RGBA"))
    conditioning_image_mode: str | None = setting(
        None, "convert every conditioning image to this mode", choices=("L", "RGB", "RGBA")
    )
    background: str = setting(
        "white", "colour behind transparent pixels if the images get no alpha channel: name or #rrggbb"
    )
    resolution: int | None = setting(None, "side of the square images in pixels [the side of the data]", at_least=1)
    width: int | None = setting(
        None, "width in pixels of images that are not square, whose height is `resolution`", at_least=1
    )
    center_crop: bool = setting(False, "crop images of another shape to the largest part in the middle")
    normalize: str | None = setting(
        None,
        "train on arrays of numbers instead of 8-bit pictures. Each channel is scaled to [-1, 1], or by its mean and "
        "standard deviation, or not at all",
        choices=("min-max", "mean-std", "none"),
    )
    channels_first: bool = setting(False, "normalize: arrays are [n, C, H, W], not [n, H, W, C]")
    image_cache_dir: str | None = setting(
        None, "folder for decoded images, for this and later runs [the cache of the datasets library]"
    )

    @property
    def form(self) -> PictureFormat:
        """What pictures are converted to."""
        from .transform import PictureFormat

        return PictureFormat(self.resolution, self.center_crop, self.image_mode, self.background, self.width)

    @property
    def shorter_side(self) -> int | None:
        """Of the images, in pixels, where `resolution` says it."""
        return self.resolution and min(self.resolution, self.width or self.resolution)

    @property
    def data_name(self) -> str:
        """The name or path of the data, whichever was given."""
        return self.dataset_name or self.train_data_dir or ""
