#!/usr/bin/env python
"""Spectrograms of 16 x 64 of a stated process: how far the spectra of samples are from those of the data.

    python benchmarks/runs/spectrograms.py runs/spectrograms --output benchmarks/results/spectrograms

Each array is the logarithm of the power of a chirp in noise: 16 frequencies at 64 moments, in decibels. The chirp
begins between 2 and 6 and ends between 8 and 14 of the 16 frequencies, fades with a time constant of 16 to 64
moments, and is 12 to 24 dB above the noise; power of noise is exponentially distributed. A model is trained on 1,000
of them. Its error is the root mean square difference, over the frequencies, between the means and the standard
deviations of its samples and of the data. The peer is the same between the two halves of the data: what chance does.
With more samples, against as many arrays that no training has seen, chance does less, and the model's own error shows.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import parser_of, provenance, table, write_report

from diffusers_ict.commands import train
from diffusers_ict.data.load import load_images
from diffusers_ict.loading import load_consistency
from diffusers_ict.training.samples import array_sheet

FREQUENCIES, MOMENTS = 16, 64
COUNT, MANY = 1000, 4000
UNET = {
    "block_out_channels": [24, 48, 48],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def spectrograms(count: int, seed: int) -> np.ndarray:
    """Arrays of the process, float32 [n, 16, 64], in decibels."""
    rng = np.random.default_rng(seed)
    start, end = rng.uniform(2, 6, (count, 1, 1)), rng.uniform(8, 14, (count, 1, 1))
    fade, loudness = rng.uniform(16, 64, (count, 1, 1)), rng.uniform(12, 24, (count, 1, 1))
    moment, frequency = np.arange(MOMENTS), np.arange(FREQUENCIES)[:, None]
    ridge = start + (end - start) * moment / (MOMENTS - 1)
    chirp = 10 ** (loudness / 10) * np.exp(-0.5 * (frequency - ridge) ** 2 - moment / fade)
    return (10 * np.log10(chirp + rng.exponential(1, (count, FREQUENCIES, MOMENTS)) + 1e-2)).astype(np.float32)


def spectrum_error(one: np.ndarray, other: np.ndarray) -> float:
    """RMS over frequencies of the differences of means and of deviations: [n, 16, 64] each."""
    spectra = [np.concatenate([part.mean((0, 2)), part.std((0, 2))]) for part in (one, other)]
    return float(np.sqrt(np.mean((spectra[0] - spectra[1]) ** 2)))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="of the data and the run; a run that is there goes on")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--levels", type=int, default=320, help="at the end of training, s1 of iCT [320]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "data.npy", spectrograms(COUNT, seed=1))
    (folder / "unet.json").write_text(json.dumps(UNET))
    flags = ["--dataset_name", folder / "data.npy", "--normalize", "mean-std", "--config", "small_budget"]
    flags += ["--model_config_name_or_path", folder / "unet.json", "--train_batch_size", 16, "--ema_decays", 0.998]
    flags += ["--objective", f"s1={options.levels}"]
    flags += ["--max_train_steps", options.steps, "--seed", options.seed, "--output_dir", folder / "model"]
    if train.main([*map(str, flags), "--resume_from_checkpoint", "latest"]):
        raise SystemExit("the run failed")
    report(options, folder)


def report(options: argparse.Namespace, folder: Path) -> None:
    """Draw, compare with the process, and write the figures and a picture."""
    pipeline = load_consistency(str(folder / "model"))
    data = np.load(folder / "data.npy")
    images = load_images(dataset_name=str(folder / "data.npy"), normalization=pipeline.normalization)
    first, second = np.random.default_rng(0).permutation(data).reshape(2, -1, *data.shape[1:])
    unseen = spectrograms(2 * MANY, seed=2).reshape(2, MANY, *data.shape[1:])
    chance = {len(first): spectrum_error(first, second), MANY: spectrum_error(*unseen)}
    rows, blocks = [], {"real": images.pixels[:8]}
    for steps in (1, 2):
        options_ = {"num_inference_steps": steps, "output_type": "np", "denormalize": True}
        drawn = np.concatenate([pipeline(500, **options_).images[..., 0] for _ in range(MANY // 500)])
        few = [spectrum_error(part, half) for part in drawn.reshape(-1, *first.shape) for half in (first, second)]
        errors = {len(first): float(np.mean(few)), MANY: spectrum_error(drawn, unseen[0])}
        for count, error in errors.items():
            rows.append({"steps": steps, "samples": count, "error": error, "chance": chance[count]})
        shown = images.pixels.new_tensor(drawn[:8, None])
        blocks[f"{steps} step{'s' * (steps > 1)}"] = images.normalization.apply(shown)
    array_sheet(blocks, images, ()).save(options.output.with_suffix(".png"))
    run = json.loads((folder / "model" / "run.json").read_text())
    facts = {"train_seconds": run["train_seconds"], "parameters": run["parameters"], "steps": run["steps"]}
    columns = ["steps", "samples", "error in dB", "of data against data", "ratio"]
    cells = [[f"{row['steps']}", f"{row['samples']}", f"{row['error']:.3f}", f"{row['chance']:.3f}"] for row in rows]
    cells = [[*cell, f"{row['error'] / row['chance']:.2f}"] for cell, row in zip(cells, rows)]
    report_ = {**provenance(), **facts, "seed": options.seed, "rows": rows}
    write_report(
        options.output, report_, f", {run['steps']} steps, {run['train_seconds']:.0f} s.", table(columns, cells)
    )


if __name__ == "__main__":
    main()
