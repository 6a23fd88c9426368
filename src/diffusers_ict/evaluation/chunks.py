"""Features of many images, made in numbered chunks by any number of processes, and never twice.

A chunk is a function of its number, and its file is written atomically. So processes share the work without talking, a
stopped evaluation continues where it was, and the result does not depend on the number of processes.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import atomic_file
from ..progress import progress_bar
from .extractors import Extractor


def key_of(description: dict[str, Any]) -> str:
    """A short name for what a description determines."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]


def save_features(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


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
        folder: of the chunks' files, one that every process sees.
        chunk: images of one chunk.
        images: (first, number of images) -> uint8 [n, C, H, W].
        label: of the progress bar.

    Returns:
        {"features": [count, d]}, and "logits" [count, classes], in the order of the images; {} on other processes.
    """
    starts = range(0, count, chunk)
    paths = [folder / f"chunk-{number:06d}.safetensors" for number in range(len(starts))]
    # What takes a moment needs no bar.
    progress = progress_bar(count, "image", shown=accelerator.is_main_process, desc=label, delay=2, leave=False)
    for number, (start, path) in enumerate(zip(starts, paths)):
        size = min(chunk, count - start)
        if number % accelerator.num_processes == accelerator.process_index and not path.exists():
            features, logits = extractor.features(images(start, size))
            save_features({"features": features} | ({} if logits is None else {"logits": logits}), path)
        progress.update(size)
    progress.close()
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return {}
    parts = [load_file(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
