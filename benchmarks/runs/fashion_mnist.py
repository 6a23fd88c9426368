#!/usr/bin/env python
"""Fashion-MNIST padded from 28x28 to 32x32, as an .npz file for --dataset_name: 60,000 grey images of ten classes.

    python benchmarks/runs/fashion_mnist.py runs/fashion32/data.npz
    python benchmarks/runs/fashion_mnist.py runs/fashion32/data.npz --source fashion-mnist.npz

Downloads zalando-datasets/fashion_mnist from the Hub, unless an .npz file with train_images, train_labels, test_images
and test_labels is given.
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", type=Path, help=".npz file of 28x28 images instead of a download")
    parser.add_argument("--test", action="store_true", help="the 10,000 images for testing instead of the 60,000")
    options = parser.parse_args()
    images, labels = read(options.source, "test" if options.test else "train")
    count = 10_000 if options.test else 60_000
    if images.shape != (count, 28, 28) or labels.shape != (count,):
        raise SystemExit(f"the data must be {count} images of 28x28 with labels, got {images.shape} and {labels.shape}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.output, images=np.pad(images, ((0, 0), (2, 2), (2, 2))), labels=labels)


def read(source: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [n, 28, 28] and labels [n] of the split "train" or "test"."""
    if source is not None:
        with np.load(source) as arrays:
            return arrays[f"{split}_images"].reshape(-1, 28, 28), arrays[f"{split}_labels"].astype(np.int64)
    from datasets import load_dataset

    rows = load_dataset("zalando-datasets/fashion_mnist", split=split)
    return np.stack([np.asarray(image) for image in rows["image"]]), np.asarray(rows["label"], np.int64)


if __name__ == "__main__":
    main()
