#!/usr/bin/env python
"""CIFAR-10 as pairs, as an .npz file for --dataset_name: images, grey ones of their luminance, and means of 2x2 pixels.

python benchmarks/runs/cifar10_pairs.py train.parquet runs/pairs/train.npz

Rows of the parquet file may be sorted by class: they are shuffled before --count of them are taken.
"""

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from diffusers_ict.formulas.editing import LUMINANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parquet", type=Path, help="with a column image of encoded files")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=None, help="images [all]")
    options = parser.parse_args()
    files = pq.read_table(options.parquet, columns=["image"])["image"].to_pylist()
    order = np.random.default_rng(0).permutation(len(files))[: options.count]
    stored = [files[number] for number in order]
    content = [each["bytes"] if isinstance(each, dict) else each for each in stored]
    images = np.stack([np.asarray(Image.open(BytesIO(each)).convert("RGB")) for each in content])
    grey = (images @ np.array(LUMINANCE)).round().astype(np.uint8)
    n, height, width, channels = images.shape
    means = images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.output, image=images, grey=grey, small=means.round().astype(np.uint8))


if __name__ == "__main__":
    main()
