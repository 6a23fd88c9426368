"""A data set of decoded images: bytes in memory, in files, or on a GPU."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..autoencoders import Autoencoder
from ..normalization import Normalization
from .rows import StoredRows
from .transform import Transform, pictures, to_unit

AT_ONCE = 1024  # images that are hashed, or copied to a device
LONGEST = 80  # characters of a list of classes


class Images(Dataset):
    """A map-style data set of images of one shape.

    An item is {"x": [C, H, W], "label": int}, without "label" where there are no labels. `__getitems__` reads a whole
    batch at once, {"x": [B, C, H, W], "label": int64 [B]}. Pairs have a "condition", too, [C', H, W] of the same type.

    Args:
        pixels: uint8 or float [n, C, H, W], one tensor, several that are joined, or rows that are read when they are
            needed. Floats are used as they are, without a range.
        labels: int64 [n] in 0 .. num_classes - 1, or None.
        num_classes: or None.
        class_names: one for each class where the data set names them.
        originals: how many pictures there were of each (width, height, mode) before the conversion, where it is known.
        normalization: of data that is no picture, or None.
        condition: what the model is given of each image, of the same height and width, or None.

    Attributes:
        transform: of what the loader gives to what the network learns.
        vae: the autoencoder whose latents are learned instead of the images, or None.
    """

    transform: Transform = staticmethod(pictures)
    vae: Autoencoder | None = None

    def __init__(
        self,
        pixels: Tensor | StoredRows | Sequence[Tensor],
        labels: Tensor | None = None,
        num_classes: int | None = None,
        class_names: tuple[str, ...] | None = None,
        originals: Counter[tuple[int, int, str]] | None = None,
        normalization: Normalization | None = None,
        condition: "Images | None" = None,
    ) -> None:
        self.rows = pixels if isinstance(pixels, (Tensor, StoredRows)) else torch.cat(tuple(pixels))
        self.labels, self.num_classes, self.class_names = labels, num_classes, class_names
        self.originals, self.normalization, self.condition = originals, normalization, condition

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.__getitems__([index % len(self)])
        one = {name: values[0] for name, values in batch.items()}
        return one if self.labels is None else {**one, "label": int(one["label"])}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        if self.device.type == "cuda":  # without waiting for the device, as a copy from unpinned memory would
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        pixels, labels = self.part(rows)
        batch = {"x": pixels} if labels is None else {"x": pixels, "label": labels}
        return batch if self.condition is None else {**batch, "condition": self.condition.rows[rows]}

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.rows.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.rows.shape
        return channels, height, width

    @property
    def condition_channels(self) -> int:
        """C', or 0 where there are no conditions."""
        return 0 if self.condition is None else self.condition.shape[0]

    @cached_property
    def pixels(self) -> Tensor:
        """All pixels as one tensor [n, C, H, W]; those in files are read."""
        return self.rows[:]

    @property
    def count(self) -> int:
        """Images of the data set."""
        return len(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels, and of those of the conditions."""
        return self.rows.nbytes + (0 if self.condition is None else self.condition.nbytes)

    @property
    def examples(self) -> "Images":
        """Images to show beside samples."""
        return self

    def part(self, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixels [B, C, H, W] and labels [B] or None of a slice of images, or of those with some indices, int64 [B]."""
        return self.rows[rows], None if self.labels is None else self.labels[rows]

    def batch(self, indices: Tensor, flips: Tensor | None, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], float32 [B, C, H, W], and labels [B], on `device`; those in `flips` are mirrored."""
        pixels, labels = self.part(indices.to(self.device))
        return to_unit(pixels, flips, device), None if labels is None else labels.to(device)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device, if they fit in half of its free memory; else as they are."""
        device = torch.device(device)
        if device == self.device or device.type == self.device.type == "cpu":  # which accelerate numbers by process
            return self
        if device.type == "cuda" and self.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return self._copied_to(device)

    def _copied_to(self, device: torch.device) -> "Images":
        pixels = torch.empty(len(self), *self.shape, dtype=self.rows.dtype, device=device)
        for place, part in zip(pixels.split(AT_ONCE), _parts(self.rows)):
            place.copy_(part)
        labels = None if self.labels is None else self.labels.to(device)
        condition = None if self.condition is None else self.condition._copied_to(device)
        about = self.num_classes, self.class_names, self.originals, self.normalization
        return Images(pixels, labels, *about, condition)

    def fingerprint(self) -> str:
        """SHA-256 of pixels, shape, labels and class names, in 32 hexadecimal digits, wherever the images lie."""
        labels = None if self.labels is None else _sha256(self.labels)
        own = [[len(self), *self.shape], self._sha256_of_pixels, labels, self.class_names]
        return fingerprint_of(own if self.condition is None else [*own, self.condition.fingerprint()])

    @cached_property
    def _sha256_of_pixels(self) -> str:
        return _sha256(self.rows)

    def overview(self) -> dict[str, str]:
        """Texts by title: number, shape and classes of the images, and what the pictures were, where it is known."""
        told = {"images": f"{len(self)} of {'x'.join(map(str, self.shape))}, {self._classes()}"}
        if self.originals is not None:
            told["originals"] = summary(self.originals)
        if self.condition is not None:
            originals = self.condition.originals
            of = "" if originals is None else f", of {summary(originals)}"
            told["conditions"] = f"{'x'.join(map(str, self.condition.shape))}{of}"
        return told

    @cached_property
    def empty_classes(self) -> list[int]:
        """Numbers of the classes that have no images."""
        if self.labels is None or self.num_classes is None:
            return []
        return (torch.bincount(self.labels.cpu(), minlength=self.num_classes) == 0).nonzero().flatten().tolist()

    def _classes(self) -> str:
        """Classes with the number of images of each, or, of many classes, the least and the largest number."""
        if self.labels is None or self.num_classes is None:
            return "no classes"
        counts = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        names = self.class_names or [f"class {number}" for number in range(len(counts))]
        each = ", ".join(f"{count} {name}" for name, count in zip(names, counts))
        if len(each) > LONGEST:
            each = f"{min(counts)} to {max(counts)} images each"
        empty = f", {len(self.empty_classes)} without images" if self.empty_classes else ""
        return f"{len(counts)} {'class' if len(counts) == 1 else 'classes'}{empty}: {each}"


def summary(originals: Counter[tuple[int, int, str]]) -> str:
    """Sizes and modes of pictures, by the shortest and the longest shorter side: "32x24 to 640x480, 79 RGB, 1 L"."""
    sizes = sorted({(min(width, height), max(width, height), width, height) for width, height, _ in originals})
    ends = dict.fromkeys(f"{width}x{height}" for *_, width, height in (sizes[0], sizes[-1]))
    modes = Counter[str]()
    for (_, _, mode), number in originals.items():
        modes[mode] += number
    return ", ".join([" to ".join(ends), *(f"{number} {mode}" for mode, number in modes.most_common())])


def fingerprint_of(facts: Any) -> str:
    """SHA-256 of JSON types, in 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _parts(rows: Tensor | StoredRows) -> Iterator[Tensor]:
    return (rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE))


def _sha256(rows: Tensor | StoredRows) -> str:
    """SHA-256 of the bytes, read in parts so that no copy of all of them is made."""
    digest = hashlib.sha256()
    for part in _parts(rows):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()
