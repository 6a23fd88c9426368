"""Training images: where they are read from, what becomes of them, and which of them a step sees."""

from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from .dataset import Images
    from .map_dataset import MapDataset
    from .stream import StreamedImages

# Each has `shape`, `condition_channels`, `num_classes`, `class_names`, `count`, `examples`, `normalization`, `vae`,
# `transform()`, `overview()`, `fingerprint()` and `to()`.
TrainingData = Union["Images", "MapDataset", "StreamedImages"]
