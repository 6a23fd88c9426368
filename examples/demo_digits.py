#!/usr/bin/env python
"""Train a two-step generator of handwritten digits and measure it. Takes about two minutes on two cores.

    python examples/demo_digits.py --output_dir runs/digits

The data are the 1,797 real 8x8 digits inside scikit-learn; the recipe is `digits`. Writes the model, its card with the
figures of `diffusers-ict evaluate`, digits.png (real | 1 step | 2 steps, a column for each class), training.png and
demo.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands.program import run_program
from diffusers_ict.evaluation import frechet_distance
from diffusers_ict.image_grid import image_grid
from diffusers_ict.training.log import read_log

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("train_flags", nargs="*", help="after --: flags of `train` that win over the recipe")
    options = parser.parse_args()
    options.output_dir = options.output_dir.expanduser()

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    options.output_dir.parent.mkdir(parents=True, exist_ok=True)
    data = options.output_dir.parent / "digits.npz"
    np.savez(data, images=pixels, labels=digits.target)

    train = [sys.executable, "-m", "diffusers_ict", "train"]
    recipe = ["--config", "digits", "--seed", str(options.seed)]
    where = ["--dataset_name", str(data), "--output_dir", str(options.output_dir)]
    run([*train, *recipe, *where, *options.train_flags])
    evaluate = [sys.executable, "-m", "diffusers_ict", "evaluate", str(options.output_dir)]
    against = ["--dataset_name", str(data), "--num_samples", str(len(pixels)), "--seed", str(options.seed)]
    what = ["--extractor", "pixels", "--metrics", "fid", "kid", "pr", "--variants", "published"]
    what += ["--cache_dir", str(options.output_dir.parent / "cache")]
    run([*evaluate, *against, *what])

    samples = draw(options.output_dir, digits.target, options.seed)
    report = measure(pixels, digits.target, samples)
    for row in json.loads((options.output_dir / "evaluation.json").read_text())["rows"]:
        report[f"frechet_{row['num_inference_steps']}"] = row["metrics"]["frechet"]
    report |= {"seed": options.seed, "train_seconds": read_log(options.output_dir / "log.jsonl")[-1]["train_seconds"]}
    picture(pixels, digits.target, samples).save(options.output_dir / "digits.png")
    (options.output_dir / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{'class':>8} {'1 step':>8} {'2 steps':>8}   recognised by a classifier fitted on real digits")
    for digit in range(10):
        print(f"{digit:>8} {report['recognised_1'][digit]:>8.1%} {report['recognised_2'][digit]:>8.1%}")
    print(f"{'all':>8} {report['recognised_1_all']:>8.1%} {report['recognised_2_all']:>8.1%}")
    print(f"The classifier recognises {report['classifier_held_out']:.1%} of held-out real digits.")
    print(
        f"Frechet distance of raw pixels to the data: {report['frechet_1']:.4f} with 1 step, {report['frechet_2']:.4f} "
        f"with 2; two random halves of the data: {report['frechet_halves']:.4f}."
    )
    print(f"Trained in {report['train_seconds']:.0f} s. See {options.output_dir / 'digits.png'} and training.png.")


def run(command: list[str]) -> None:
    """Run a program, and end with its exit code if it fails."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def draw(folder: Path, labels: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """One image for each label, with one step and with two: in [0, 1], [n, 8, 8]."""
    pipeline = ConsistencyPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    out = {}
    for steps in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        images = pipeline(len(labels), labels, steps, generator=generator, output_type="np").images
        out[steps] = images[..., 0]
    return out


def measure(pixels: np.ndarray, labels: np.ndarray, samples: dict[int, np.ndarray]) -> dict:
    """Shares recognised, in all and by class, and for comparison the Frechet distance between halves of the data."""
    real = pixels.reshape(len(pixels), -1) / 255
    fit_x, held_x, fit_y, held_y = train_test_split(real, labels, test_size=0.3, random_state=0, stratify=labels)
    classifier = SVC(gamma=0.25).fit(fit_x, fit_y)
    half = np.random.default_rng(0).permutation(len(real))
    middle = len(real) // 2
    report = {
        "classifier_held_out": float(classifier.score(held_x, held_y)),
        "frechet_halves": frechet_distance(*(torch.from_numpy(real[rows]) for rows in (half[:middle], half[middle:]))),
        "samples": len(labels),
    }
    for steps, images in samples.items():
        flat = images.reshape(len(images), -1)
        right = classifier.predict(flat) == labels
        report[f"recognised_{steps}_all"] = float(right.mean())
        report[f"recognised_{steps}"] = [float(right[labels == digit].mean()) for digit in range(10)]
    return report


def picture(pixels: np.ndarray, labels: np.ndarray, samples: dict[int, np.ndarray], rows: int = 4) -> Image.Image:
    """Blocks of `rows` rows: real, one step, two steps; one column for each class."""
    first = np.stack([np.flatnonzero(labels == digit)[:rows] for digit in range(10)], 1).reshape(-1)
    blocks = [pixels / 255, samples[1], samples[2]]
    grids = [np.asarray(image_grid(block[first][..., None], 10, zoom=4, gap=4)) for block in blocks]
    gap = np.full((20, grids[0].shape[1]), 255, np.uint8)
    return Image.fromarray(np.concatenate([grids[0], gap, grids[1], gap, grids[2]]))


if __name__ == "__main__":
    sys.exit(run_program("demo_digits.py", main))
