"""The settings that say which images to read and how: the same flags in training, evaluation and inspection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..settings import setting

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .images import Images
    from .picture_format import PictureFormat


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, and how they are read; the fields are the arguments of `load_images`."""

    dataset_name: str | None = setting(None, "Hub data set, save_to_disk folder, or .parquet, .arrow or .npz file")
    dataset_config_name: str | None = setting(None, "configuration of the Hub data set")
    dataset_split: str = setting("train", "split of the Hub data set")
    train_data_dir: str | None = setting(None, "folder of images; one sub-folder for each class if class-conditional")
    image_column: str | None = setting(None, "column of the images, where there are several")
    label_column: str | None = setting(None, "column of the labels, where there are several")
    image_mode: str | None = setting(None, "convert every image to this mode", choices=("L", "RGB", "RGBA"))
    background: str = setting(
        "white", "colour behind transparent pixels where image_mode has no alpha: name or #rrggbb"
    )
    resolution: int | None = setting(None, "side of the square images in pixels [that of the data]", at_least=1)
    center_crop: bool = setting(False, "cut the middle out of images that are not square")
    image_cache_dir: str | None = setting(
        None, "keep decoded images in a file there, for later runs and for data larger than memory"
    )

    def load(self, class_conditional: bool, accelerator: Accelerator | None = None) -> Images:
        """Read the images; see `load_images`. The processes of an accelerator share one copy on each machine."""
        from .images import load_images
        from .shared import load_shared

        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(DataSettings)}
        if accelerator is None:
            return load_images(**own, class_conditional=class_conditional)
        folder = own.pop("image_cache_dir")
        return load_shared(
            accelerator,
            folder,
            lambda chosen: load_images(**own, class_conditional=class_conditional, image_cache_dir=chosen),
        )

    @property
    def form(self) -> PictureFormat:
        """What pictures are converted to."""
        from .picture_format import PictureFormat

        return PictureFormat(self.resolution, self.center_crop, self.image_mode, self.background)

    @property
    def data_name(self) -> str:
        """The name or path of the data, whichever was given."""
        return self.dataset_name or self.train_data_dir or ""
