"""Any map-style data set as the images of a run."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..normalization import Normalization
from .dataset import Images
from .transform import Transform, pictures

SHOWN = 256  # items that stand for the data set: in sample grids, and in its fingerprint


class MapDataset(Dataset):
    """A data set of {"x": [C, H, W], "label": int}, or without labels, and what a run has to know of it.

    Args:
        dataset: map-style, as PyTorch has it: `len(dataset)` and `dataset[i]`; `dataset.__getitems__(indices)` may give
            a whole batch at once. x is uint8, which becomes [-1, 1], or floating point, which is trained as it is.
            With labels, it has the attribute `num_classes`, and may have `class_names`. Data that is no picture may
            have the `normalization` that x came from, which the model then keeps. Items of pairs have a "condition"
            [C', H, W] as well, of the types of x.

    Raises:
        UserError: it is empty, its items are something else, or nobody knows how many classes there are.
    """

    transform: Transform = staticmethod(pictures)
    vae = None

    def __init__(self, dataset: Any) -> None:
        if len(dataset) == 0:
            raise UserError("the data set holds no images.")
        self.dataset, self.count = dataset, len(dataset)
        indices = torch.linspace(0, self.count - 1, min(SHOWN, self.count)).round().long().tolist()
        items = [_checked(dataset[index], index) for index in indices]
        shapes, labelled = {tuple(item["x"].shape) for item in items}, {"label" in item for item in items}
        if len(shapes) > 1 or len(labelled) > 1:
            raise UserError(f"all items must have one shape, and all or none a label, got {sorted(shapes)}.")
        conditions = _conditions_of(items)
        labels = torch.tensor([int(item["label"]) for item in items]) if True in labelled else None
        pixels = torch.stack([item["x"] for item in items])
        self.device = pixels.device
        channels, height, width = pixels.shape[1:]
        self.shape = (channels, height, width)
        self.num_classes: int | None = None if labels is None else getattr(dataset, "num_classes", None)
        if labels is not None and not (self.num_classes and labels.min() >= 0 and labels.max() < self.num_classes):
            raise UserError(
                f"a data set with labels needs the attribute `num_classes`, above its labels ({int(labels.min())} to "
                f"{int(labels.max())} in {len(labels)} items), got {self.num_classes}."
            )
        names = getattr(dataset, "class_names", None)
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.normalization: Normalization | None = getattr(dataset, "normalization", None)
        self.condition_channels = 0 if conditions is None else conditions.shape[0]
        about = self.num_classes, self.class_names, None, self.normalization
        self.examples = Images(pixels, labels, *about, conditions)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        batch = getattr(self.dataset, "__getitems__", None)
        return batch(indices) if batch else [self.dataset[index] for index in indices]

    def overview(self) -> dict[str, str]:
        """Texts by title: number, shape and classes of the images."""
        classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
        told = {"images": f"{self.count} of {'x'.join(map(str, self.shape))}, {classes}"}
        condition = self.examples.condition
        return told if condition is None else {**told, "conditions": "x".join(map(str, condition.shape))}

    def fingerprint(self) -> str:
        """What the images are, in 32 hexadecimal digits: their number, and up to 256 of them at even distances."""
        facts = f"{self.count} {self.examples.fingerprint()}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def to(self, device: torch.device | str) -> "MapDataset":
        """This data set, which stays where it is."""
        return self


def _conditions_of(items: Sequence[dict[str, Any]]) -> Images | None:
    """The conditions of items, or None where they have none; a UserError where they do not fit."""
    found = [item["condition"] for item in items if "condition" in item]
    if not found:
        return None
    kinds = {(tuple(c.shape), c.dtype) if isinstance(c, Tensor) else (type(c).__name__,) for c in found}
    allowed = all(isinstance(c, Tensor) and (c.dtype == torch.uint8 or c.is_floating_point()) for c in found)
    size = tuple(items[0]["x"].shape[1:])
    if len(found) < len(items) or len(kinds) > 1 or not allowed or found[0].ndim != 3 or found[0].shape[1:] != size:
        raise UserError(
            'all items or none must have a "condition", a tensor [C, H, W] of uint8 or floats with the size of x, '
            f"{list(size)}, got {len(found)} of {len(items)} with {sorted(map(str, kinds))}."
        )
    if found[0].is_floating_point() and not all(c.abs().max() <= 1 for c in found):
        raise UserError('floats of a "condition" must lie within -1 and 1, which pipelines take as 0 to 1: scale them.')
    return Images(torch.stack(found))


def _checked(item: Any, index: int) -> dict[str, Any]:
    x = item.get("x") if isinstance(item, dict) else None
    if not isinstance(x, Tensor) or x.ndim != 3 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(item).__name__
        raise UserError(
            'items of a data set must be {"x": tensor [C, H, W] of uint8 or floats, "label": int}, and number '
            f"{index} is {what}."
        )
    return item
