#!/usr/bin/env python
"""The digits of scikit-learn in colours, as an .npz file for --dataset_name: each class has a hue of its own.

python benchmarks/runs/coloured_digits.py runs/coloured_digits.npz
"""

import argparse
import colorsys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    digits = load_digits()
    hues = np.array([colorsys.hsv_to_rgb(digit / 10, 0.8, 1.0) for digit in range(10)])
    coloured = digits.images[..., None] / 16 * hues[digits.target][:, None, None]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.output, images=(coloured * 255).round().astype(np.uint8), labels=digits.target)


if __name__ == "__main__":
    main()
