"""Pairs: beside every image a condition, of the same place in the data set or of the same name in another folder."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import datasets
import torch

from ..errors import UserError
from ..formulas.residual import residual_scale
from ..names import visible
from .dataset import Images
from .settings import DataSettings
from .sources import PATHS, Stored, find_images, state_of
from .transform import PictureFormat

FITTED = 4096  # pairs by which residuals are scaled,
VALUES = 2**28  # if they have no more values than these,
VALUES_AT_ONCE = 2**22  # of which so many are looked at together
TARGETS = "target"  # the sub-folder of the images, where no other is named


def of_targets(settings: DataSettings) -> DataSettings:
    """The settings by which the images of pairs are read: in a folder of pairs, those of a sub-folder.

    Raises:
        UserError: there is no such sub-folder.
    """
    if settings.conditioning_image_column is None or not settings.train_data_dir:
        return settings
    folder = _sub_folder(settings, settings.image_column or TARGETS)
    return dataclasses.replace(settings, train_data_dir=str(folder), image_column=None)


def of_conditions(settings: DataSettings) -> DataSettings:
    """The settings by which the conditions of a data set are read."""
    return dataclasses.replace(
        settings, image_column=settings.conditioning_image_column, image_mode=settings.conditioning_image_mode
    )


def scale_of_residuals(images: Images, most: int = FITTED) -> float:
    """The `residual_scale` of pairs, by up to `most` of them at even distances; 0 where each image is its condition."""
    condition, size = images.condition, math.prod(images.shape)
    assert condition is not None
    count = min(most, len(images), max(64, VALUES // size))
    shown = torch.linspace(0, len(images) - 1, count).round().long()
    parts = shown.split(max(1, VALUES_AT_ONCE // size))
    return residual_scale((images.batch(part, None, "cpu")[0], condition.batch(part, None, "cpu")[0]) for part in parts)


def form_of_conditions(settings: DataSettings, shape: tuple[int, int, int]) -> PictureFormat:
    """What conditions are converted to: channels of their own, and the size of the images, which are [C, H, W]."""
    _, height, width = shape
    mode = settings.conditioning_image_mode
    return PictureFormat(height, settings.center_crop, mode, settings.background, width)


def read_partners(settings: DataSettings, targets: datasets.Dataset) -> Stored:
    """The conditions of a folder of pairs, one for each image of the other folder, in the same order.

    Args:
        targets: rows {"image": {"path"}}, as `read_folder` gives them.

    Raises:
        UserError: an image without a condition, a condition without an image, or two files of one name.
    """
    folder = _sub_folder(settings, str(settings.conditioning_image_column)).resolve()
    of_images = of_targets(settings)
    top = Path(str(of_images.train_data_dir)).resolve()
    wanted = _by_name([Path(os.fsdecode(row["path"])) for row in targets["image"]], top)
    found = _by_name(sorted(find_images(folder)), folder)
    for names, what, there in (
        (wanted.keys() - found.keys(), "image", folder),
        (found.keys() - wanted.keys(), "condition", top),
    ):
        if names:
            raise UserError(
                f"every image needs a condition of the same name, and the {what} {visible(min(names))} has no partner "
                f"in {there} ({len(names)} such): add or remove files."
            )
    files = [found[name] for name in wanted]
    rows = {"image": [{"bytes": None, "path": os.fsencode(file)} for file in files]}
    return Stored(datasets.Dataset.from_dict(rows, features=PATHS), key=state_of(files))


def check_crops(images: Counter, conditions: Counter, shape: tuple[int, int, int]) -> None:
    """Check that `center_crop` cuts the same part out of both pictures of a pair.

    Args:
        images, conditions: how many pictures there are of each (width, height, mode).
        shape: [C, H, W] of what they were made into.

    Raises:
        UserError: pictures of which a part was cut off, and whose sizes are not those of their partners.
    """
    _, high, across = shape
    cropped = []
    for originals in (images, conditions):
        sizes = Counter[tuple[int, int]]()
        for (width, height, _), count in originals.items():
            if width * high != height * across:
                sizes[width, height] += count
        cropped.append(sizes)
    if odd := next(iter((cropped[0] - cropped[1]) + (cropped[1] - cropped[0])), None):
        needed = "not square" if high == across else f"not of the shape {across}x{high}"
        raise UserError(
            f"`center_crop` needs an image and its condition of one size where they are {needed}, and some of "
            f"{odd[0]}x{odd[1]} have partners of another size: crop them alike before."
        )


def _sub_folder(settings: DataSettings, name: str) -> Path:
    top = Path(settings.train_data_dir or "")
    if not (top / name).is_dir():
        there = sorted(path.name for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
        raise UserError(
            "a folder of pairs has one sub-folder of conditions, which `conditioning_image_column` names, and one of "
            f"images, {TARGETS} or that of `image_column`, and {top} has {', '.join(map(visible, there)) or 'none'}, "
            f"not {visible(name)}."
        )
    return top / name


def _by_name(files: list[Path], top: Path) -> Mapping[str, Path]:
    """Files by their paths from the folder `top`, without suffixes."""
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(top).with_suffix("").as_posix()
        if name in named:
            raise UserError(f"pairs are found by names without suffixes, and {named[name]} and {file} have one name.")
        named[name] = file
    return named
