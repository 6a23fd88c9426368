"""The reference of an evaluation: features of real images, computed once and kept by content."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..data.dataset import Images
from ..errors import UserError
from .chunks import DamagedFile, collect, is_whole, key_of, load_features, save_features
from .extractors import Extractor
from .metrics import Moments
from .work import WorkFolders

VERSION = 3


@dataclass(frozen=True)
class Reference:
    """Features of a data set and their moments.

    Attributes:
        description: dataset, split, images, flipped, extractor, weights, resize; hash: of the images and all of these.
    """

    features: Tensor
    moments: Moments
    description: dict[str, Any]
    hash: str


def describe_reference(images: Images, name: str, split: str, flipped: bool, extractor: Extractor) -> dict[str, Any]:
    """Everything that determines a reference, in plain JSON."""
    digest = hashlib.sha256(str(tuple(images.pixels.shape)).encode())
    digest.update(images.pixels.numpy().data)
    return {
        "version": VERSION,
        "dataset": name,
        "split": split,
        "images": len(images),
        "shape": list(images.shape),
        "flipped": flipped,
        "pixels": digest.hexdigest(),
        "extractor": extractor.name,
        "weights": extractor.weights,
        "resize": extractor.resize,
    }


def make_reference(
    images: Images, description: dict[str, Any], extractor: Extractor, cache: Path, accelerator: Accelerator, chunk: int
) -> Reference:
    """The reference of this description, from the cache or computed; if it is flipped, every image counts twice.

    Its file, `cache/reference-HASH.safetensors`, holds features, mean, covariance and description: it can be shared.
    """
    # What a data set is called does not change its features.
    key = key_of({name: value for name, value in description.items() if name not in ("dataset", "split")})
    path = cache / f"reference-{key}.safetensors"
    ready = [accelerator.is_main_process and is_whole(path)]  # broadcast, so that all processes take the same path
    if not broadcast_object_list(ready)[0]:
        pixels = torch.cat([images.pixels, images.pixels.flip(-1)]) if description["flipped"] else images.pixels

        def given(start: int, size: int) -> Tensor:
            return pixels[start : start + size]

        with WorkFolders(cache, accelerator) as work:
            folder = work.claim(f"reference-{key}-{chunk}")
            collected = collect(folder, len(pixels), chunk, given, extractor, accelerator, "reference")
            if accelerator.is_main_process:
                features = collected["features"]
                moments = Moments.of(features)
                tensors = {"features": features, "mean": moments.mean, "covariance": moments.covariance}
                save_features(tensors, path, {"description": json.dumps(description), "hash": key})
                work.clean()
        accelerator.wait_for_everyone()
    # The file may have been made under another name of the same images.
    return replace(read_reference(path, extractor), description=description)


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """Read a reference from its file.

    Raises:
        UserError: not such a file, a damaged one, or one made with another extractor.
    """
    try:
        tensors, metadata = load_features(path)
        description, key = json.loads(metadata["description"]), metadata["hash"]
        features, mean, covariance = (tensors[name] for name in ("features", "mean", "covariance"))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path} of reference statistics.") from error
    except (DamagedFile, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a file of reference statistics, or a damaged one: {error}.") from error
    if (description["extractor"], description["weights"]) != (extractor.name, extractor.weights):
        raise UserError(
            f"{path.name} holds features of {description['extractor']} ({description['weights'][:12]}) and samples "
            f"would be measured with {extractor.name} ({extractor.weights[:12]}); use the same `extractor` and weights."
        )
    return Reference(features, Moments(len(features), mean, covariance * (len(features) - 1)), description, key)
