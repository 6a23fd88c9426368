"""Features of images, extracted in batches by all processes; those of the real images are kept in one file."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..data.dataset import Images
from ..errors import UserError, first_line
from ..files import atomic_file, read_tensors
from ..hashes import tensors_hash
from ..progress import progress_bar
from .extractors import Extractor
from .metrics import Moments

FORMAT = 4  # of what determines a reference
ImagesByNumber = Callable[[Tensor], Tensor]  # numbers [n] -> images, uint8 [n, C, H, W]


@dataclass(frozen=True)
class Features:
    """What metrics read of a set of images.

    Attributes:
        moments: mean and covariance of the features.
        features: [n, d] in the order of the images, or None where moments are enough.
        logits: [n, classes], or None where the extractor gives none.
    """

    moments: Moments
    features: Tensor | None = None
    logits: Tensor | None = None

    def to(self, device: torch.device) -> "Features":
        """The same on another device."""
        rows = (None if held is None else held.to(device) for held in (self.features, self.logits))
        return Features(self.moments.to(device), *rows)


def exact_device(device: torch.device) -> torch.device:
    """Where metrics are computed: on the device if it has float64, as GPUs of NVIDIA and AMD do, else on the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


@dataclass(frozen=True)
class Extraction:
    """An extractor that runs on all processes, on `batch_size` images of `shape`, (C, H, W), at once on each.

    Images are uint8, or float32 where they are no pictures.
    """

    extractor: Extractor
    accelerator: Accelerator
    batch_size: int
    shape: tuple[int, int, int]
    pictures: bool = True

    @cached_property
    def widths(self) -> list[int]:
        """Numbers of features, and of logits where there are any, of an image; a black one shows them."""
        kind = torch.uint8 if self.pictures else torch.float32
        return [output.shape[1] for output in self._outputs(torch.zeros(1, *self.shape, dtype=kind))]

    def __call__(self, images: ImagesByNumber, count: int, label: str, keep: bool) -> Features:
        """Features of `count` images on the main process, and of none on the others.

        Args:
            label: of the progress bar.
            keep: whether features and logits are kept. Otherwise memory does not grow with the number of images.

        Raises:
            UserError: the extractor gives numbers that are not finite, or not as many for each image.
        """
        accelerator, kept = self.accelerator, []
        moments = Moments.of(torch.zeros(0, self.widths[0], device=exact_device(accelerator.device)))
        loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(count)), self.batch_size))
        shown = accelerator.is_main_process
        with progress_bar(count, "image", shown=shown, desc=label, delay=2, leave=False) as progress:
            for (numbers,) in loader:
                outputs = self._outputs(images(numbers.cpu()))
                if [output.shape[1] for output in outputs] != self.widths:
                    raise UserError(f"{self.extractor.name} must give as many numbers for every image.")
                # In the order of the images, less those that fill up the last batch of the last process.
                outputs = accelerator.gather_for_metrics([output.to(accelerator.device) for output in outputs])
                progress.update(len(outputs[0]))
                if accelerator.is_main_process:
                    moments.update(outputs[0])
                    kept += [[output.cpu() for output in outputs]] if keep else []
        return Features(moments.to("cpu"), *map(torch.cat, zip(*kept)))

    def _outputs(self, images: Tensor) -> list[Tensor]:
        outputs = [output for output in self.extractor.features(images) if output is not None]
        if not all(output.isfinite().all() for output in outputs):
            raise UserError(f"{self.extractor.name} gives features that are not numbers for these images.")
        return outputs


@dataclass(frozen=True)
class Reference:
    """The real images of an evaluation.

    Attributes:
        description: dataset, split, images, shape, flipped, extractor, weights, resize, ...
        features: of the images, on the main process; if `flipped`, every image counts twice.
    """

    description: dict[str, Any]
    features: Features | None = None

    @property
    def hash(self) -> str:
        """Of everything that determines the features; what a data set is called does not."""
        facts = {name: value for name, value in self.description.items() if name not in ("dataset", "split")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def count(self) -> int:
        """Images, counting mirrored ones."""
        return self.description["images"] * (1 + self.description["flipped"])


def measure_reference(images: Images, facts: dict[str, Any], extract: Extraction, cache: Path, keep: bool) -> Reference:
    """The reference of images, from `cache/reference-HASH.safetensors`, or computed and kept there.

    Args:
        facts: dataset, split, and whether the images are `flipped`.
        keep: whether features are needed beside their mean and covariance.

    Raises:
        UserError: the file cannot be written; or see `Extraction`.
    """
    extractor, accelerator, stored = extract.extractor, extract.accelerator, None
    network = {"extractor": extractor.name, "weights": extractor.weights, "resize": extractor.resize}
    pixels = {"images": len(images), "shape": list(images.shape), "fingerprint": images.fingerprint()}
    reference = Reference({"version": FORMAT, **facts, **pixels, **network})
    path = cache / f"reference-{reference.hash}.safetensors"
    if accelerator.is_main_process and path.exists():
        try:
            stored = _load(path).features
        except UserError as error:
            warnings.warn(f"{error} It is made again.", stacklevel=2)
    usable = stored is not None and not (keep and stored.features is None)
    if broadcast_object_list([usable])[0]:  # so that all processes take the same path
        return replace(reference, features=stored)

    def real(numbers: Tensor) -> Tensor:
        pixels, _ = images.part(numbers % len(images))
        mirrored = (numbers >= len(images)).to(pixels.device)
        return torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)

    reference = replace(reference, features=extract(real, reference.count, "reference", keep))
    if accelerator.is_main_process:
        _save(path, reference)
    return reference


def read_reference(path: Path, extractor: Extractor, keep: bool) -> Reference:
    """Read a reference of an earlier evaluation.

    Raises:
        UserError: there is none, it is damaged, was made with another extractor, or lacks features that are needed.
    """
    reference = _load(path)
    name, weights = (reference.description[key] for key in ("extractor", "weights"))
    if (name, weights) != (extractor.name, extractor.weights):
        raise UserError(
            f"{path.name} holds features of {name} ({weights[:12]}) and samples would be measured with "
            f"{extractor.name} ({extractor.weights[:12]}); use the same `extractor` and weights."
        )
    if keep and (reference.features is None or reference.features.features is None):
        raise UserError(
            f"{path.name} holds mean and covariance alone, which fid needs; for other `metrics`, give the "
            "real images instead."
        )
    return reference


def _save(path: Path, reference: Reference) -> None:
    """Write a safetensors file, atomically, with a checksum of all it holds."""
    assert reference.features is not None
    moments, features = reference.features.moments, reference.features.features
    tensors = {"mean": moments.mean, "covariance": moments.covariance}
    tensors |= {} if features is None else {"features": features}
    metadata = {"description": json.dumps(reference.description), "hash": reference.hash}
    try:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, {**metadata, "checksum": _checksum(tensors, metadata)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {first_line(error)}; give another `cache_dir`.") from error


def _load(path: Path) -> Reference:
    if not path.exists():
        raise UserError(f"there is no file {path} of reference statistics.")
    try:
        tensors, metadata = read_tensors(path)
        if metadata.pop("checksum", None) != _checksum(tensors, metadata):
            raise KeyError("its checksum does not fit")
        reference = Reference(json.loads(metadata["description"]))
        moments = Moments(reference.count, tensors["mean"], tensors["covariance"] * (reference.count - 1))
        return replace(reference, features=Features(moments, tensors.get("features")))
    except (OSError, SafetensorError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{path} is not a file of reference statistics, or a damaged one: {reason}.") from error


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    return hashlib.sha256(f"{tensors_hash(tensors)} {json.dumps(metadata, sort_keys=True)}".encode()).hexdigest()
