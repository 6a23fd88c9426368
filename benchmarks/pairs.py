#!/usr/bin/env python
"""Models of pairs against zero-shot edits of a model without conditions: PSNR and SSIM on images that no run has seen.

    python benchmarks/pairs.py --runs runs/pairs --data runs/pairs/test.npz --output benchmarks/results/pairs

RUNS holds the runs `image`, without conditions, `grey` and `small`, and DATA the arrays of these names; see
benchmarks/runs/pairs.sh. Writes OUTPUT.json and OUTPUT.md, and for each task OUTPUT_grey.png and OUTPUT_small.png.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from provenance import parser_of, provenance, table, write_report
from torch import Tensor

from diffusers_ict import ConsistencyColorizePipeline, ConsistencyPipeline, ConsistencyUpscalePipeline
from diffusers_ict.evaluation.paired import psnr, ssim
from diffusers_ict.hashes import weights_hash
from diffusers_ict.hub.metadata import RunMetadata
from diffusers_ict.image_grid import as_pictures, labelled_blocks

TASKS = {"grey": "grey to colour", "small": "16 to 32 pixels"}
EDITS = {"grey": ConsistencyColorizePipeline, "small": ConsistencyUpscalePipeline}
PAIR_STEPS, EDIT_STEPS = (1, 2), (1, 2, 4, 10)
PART = 100  # images at once
SHOWN = 10


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=500, help="test images [500]")
    parser.add_argument("--seed", type=int, default=0, help="of the noise [0]")
    options = parser.parse_args()
    with np.load(options.data) as stored:
        data = {name: stored[name][: options.samples] for name in ("image", *TASKS)}
    targets = torch.from_numpy(data["image"]).permute(0, 3, 1, 2)
    rows: list[dict] = []
    for name in TASKS:
        given = [Image.fromarray(one) for one in data[name]]
        drawn = {"enlarged, or grey itself": enlarged(given)}
        drawn |= edited(options.runs, name, given, options.seed) | drawn_for(options.runs, name, given, options.seed)
        for method, images in drawn.items():
            figures = {"psnr": psnr(images, targets).mean().item(), "ssim": ssim(images, targets).mean().item()}
            rows.append({"task": TASKS[name], "method": method, **figures})
            print(json.dumps(rows[-1]), flush=True)
        picture(given, targets, drawn).save(f"{options.output}_{name}.png")
    runs = {name: describe(options.runs / name) for name in ("image", *TASKS)}
    residuals = all(runs[name]["residual_scale"] for name in TASKS)
    facts = {"samples": options.samples, "seed": options.seed, "residuals": residuals}
    report = {**provenance(), **facts, "runs": runs, "rows": rows}
    write_report(options.output, report, *lines_of(report))


def describe(folder: Path) -> dict:
    """What a run was, from its folder."""
    run = RunMetadata.read(folder)
    names = ("steps", "batch_size", "train_seconds", "parameters")
    pipeline = ConsistencyPipeline.from_pretrained(folder)
    own = {"weights": weights_hash(pipeline.unet)[:12], "residual_scale": pipeline.scheduler.config.residual_scale}
    return {**{name: getattr(run, name) for name in names}, **own}


def enlarged(given: list[Image.Image]) -> Tensor:
    """What nothing was learnt for: the given images in three channels, enlarged by a Lanczos filter."""
    pixels = [np.asarray(one.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)) for one in given]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def in_parts(draw: Callable[[list[Image.Image]], Tensor], given: list[Image.Image]) -> Tensor:
    """uint8 images [n, C, H, W] of all that is given, drawn in [0, 1] in parts."""
    parts = [draw(given[first : first + PART]).cpu() for first in range(0, len(given), PART)]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def edited(runs: Path, name: str, given: list[Image.Image], seed: int) -> dict[str, Tensor]:
    """Zero-shot edits by the model without conditions."""
    pipeline = EDITS[name].from_pretrained(runs / "image")
    pipeline.set_progress_bar_config(disable=True)
    images = {}
    for steps in EDIT_STEPS:
        more = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), "output_type": "pt"}
        images[f"zero-shot edit, {steps} step{'s' * (steps > 1)}"] = in_parts(
            lambda part, more=more: pipeline(part, **more).images, given
        )
    return images


def drawn_for(runs: Path, name: str, given: list[Image.Image], seed: int) -> dict[str, Tensor]:
    """Images of the model of pairs."""
    pipeline = ConsistencyPipeline.from_pretrained(runs / name)
    pipeline.set_progress_bar_config(disable=True)
    images = {}
    for steps in PAIR_STEPS:
        more = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), "output_type": "pt"}
        images[f"pairs, {steps} step{'s' * (steps > 1)}"] = in_parts(
            lambda part, more=more: pipeline(image=part, **more).images, given
        )
    return images


def picture(given: list[Image.Image], targets: Tensor, drawn: dict[str, Tensor]) -> Image.Image:
    """The first images: as given, as they are, and as they were drawn."""
    blocks = {"given": enlarged(given), "image": targets, **drawn}
    del blocks["enlarged, or grey itself"]
    return labelled_blocks({k: as_pictures(v[:SHOWN].float() / 127.5 - 1) for k, v in blocks.items()}, SHOWN)


def lines_of(report: dict) -> tuple[str, list[str]]:
    """The report as Markdown: words and a table."""
    runs = report["runs"]
    steps = {run["steps"] for run in runs.values()}
    size, seconds = runs["image"]["parameters"] / 1e6, [run["train_seconds"] / 60 for run in runs.values()]
    learned = "the differences from the conditions" if report["residuals"] else "the images"
    words = (
        f", {report['samples']} test images of CIFAR-10, seed {report['seed']}.\n"
        f"Three runs of {' and '.join(map(str, sorted(steps)))} steps of {runs['image']['batch_size']} images with "
        f"networks of {size:.2f} M parameters by the recipe small_budget, one after another on one core, which other "
        f"programs may have used, too: {', '.join(f'{minutes:.1f}' for minutes in seconds)} minutes for no condition, "
        f"grey and small. Those of pairs learned {learned}. A step costs the same in each but for the first "
        "convolution. PSNR and SSIM are means over images."
    )
    cells = ([row["task"], row["method"], f"{row['psnr']:.2f}", f"{row['ssim']:.3f}"] for row in report["rows"])
    return words, table(["task", "method", "PSNR in dB", "SSIM"], cells)


if __name__ == "__main__":
    main()
