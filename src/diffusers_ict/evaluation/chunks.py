"""Features of many images, made in numbered chunks by any number of processes, and never twice.

A chunk is a function of its number, and its file is written atomically, with a checksum. So processes share the work
without talking, a stopped evaluation continues where it was, and the result does not depend on the number of processes.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError, first_line
from ..files import atomic_file
from ..hub.provenance import tensors_hash
from ..progress import progress_bar
from .extractors import Extractor


class DamagedFile(ValueError):
    """A file of features is not whole. The message says why."""


def key_of(description: dict[str, Any]) -> str:
    """A short name for what a description determines."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]


def save_features(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with a checksum of tensors and metadata.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    metadata = metadata or {}
    try:
        with atomic_file(path) as temporary:
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole, temporary, {**metadata, "checksum": _checksum(whole, metadata)})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written: {first_line(error)}; what was finished before stays, and the same command "
            "continues there."
        ) from error


def load_features(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file that `save_features` wrote.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is not what was written.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedFile(first_line(error)) from error
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise DamagedFile("its checksum does not fit")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    return hashlib.sha256(f"{tensors_hash(tensors)} {json.dumps(metadata, sort_keys=True)}".encode()).hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a file of features is there. A damaged one counts as absent, with a warning."""
    try:
        load_features(path)
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        warnings.warn(f"{path} is damaged and is made again: {error}.", stacklevel=2)
        return False
    return True


def collect(
    folder: Path,
    count: int,
    chunk: int,
    images: Callable[[int, int], Tensor],
    extractor: Extractor,
    accelerator: Accelerator,
    label: str,
) -> dict[str, Tensor]:
    """Features, and logits where there are any, of `count` images, made by all processes and read by the main one.

    Args:
        folder: of the chunks' files, one that every process sees and no other evaluation uses.
        chunk: images of one chunk.
        images: (first, number of images) -> uint8 [n, C, H, W].
        label: of the progress bar.

    Returns:
        {"features": [count, d]}, and "logits" [count, classes], in the order of the images; {} on other processes.

    Raises:
        UserError: features that are not finite, or not of one kind; a chunk cannot be written or read.
    """
    starts = range(0, count, chunk)
    paths = [folder / f"chunk-{number:06d}.safetensors" for number in range(len(starts))]
    # What takes a moment needs no bar.
    progress = progress_bar(count, "image", shown=accelerator.is_main_process, desc=label, delay=2, leave=False)
    for number, (start, path) in enumerate(zip(starts, paths)):
        size = min(chunk, count - start)
        if number % accelerator.num_processes == accelerator.process_index and not is_whole(path):
            save_features(_features(extractor, images(start, size)), path)
        progress.update(size)
    progress.close()
    accelerator.wait_for_everyone()
    return _joined(paths, extractor) if accelerator.is_main_process else {}


def _features(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    features, logits = extractor.features(images)
    found = {"features": features} | ({} if logits is None else {"logits": logits})
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise UserError(f"{extractor.name} gives features that are not numbers for these images.")
    return found


def _joined(paths: list[Path], extractor: Extractor) -> dict[str, Tensor]:
    try:
        parts = [load_features(path)[0] for path in paths]
    except (FileNotFoundError, DamagedFile) as error:
        raise UserError(f"a chunk in {paths[0].parent} was lost or damaged meanwhile: run it again.") from error
    kinds = {tuple((name, tensor.shape[1]) for name, tensor in sorted(part.items())) for part in parts}
    if len(kinds) > 1:
        shown = " and ".join(str(dict(kind)) for kind in sorted(kinds))
        raise UserError(f"{extractor.name} must give as many numbers for every image, got {shown}.")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
