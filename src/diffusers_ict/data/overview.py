"""What was read, in a few words: it shows at a glance whether the data are the ones that were meant."""

import torch

from . import TrainingData
from .images import Images
from .stream import StreamedImages

LONGEST = 80  # characters of a list of classes


def overview(images: TrainingData) -> dict[str, str]:
    """Texts by title: number, shape and classes of the images, and what the pictures were, where it is known."""
    count = "unknown number" if images.count is None else images.count
    found = {"images": f"{count} of {'x'.join(map(str, images.shape))}, {_classes(images)}"}
    if isinstance(images, StreamedImages):
        found["streamed"] = f"{images.shards.number} shards, shuffled in blocks of {images.buffer} images"
    if images.examples.originals is not None:
        found["originals"] = str(images.examples.originals)
    return found


def _classes(images: TrainingData) -> str:
    """Classes with the number of images of each, or, of many classes, the least and the largest number."""
    if not isinstance(images, Images) or images.labels is None or images.num_classes is None:
        return f"{images.num_classes or 'no'} classes"
    counts = torch.bincount(images.labels, minlength=images.num_classes).tolist()
    names = images.class_names or [f"class {number}" for number in range(len(counts))]
    each = ", ".join(f"{count} {name}" for name, count in zip(names, counts))
    if len(each) > LONGEST:
        each = f"{min(counts)} to {max(counts)} images each"
    return f"{len(counts)} {'class' if len(counts) == 1 else 'classes'}: {each}"
