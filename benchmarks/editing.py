#!/usr/bin/env python
"""How well a model edits without having been trained for it: recognised, and the errors of both parts of the image.

    python benchmarks/editing.py --models runs/digits model_cards/fashion32 --data runs/digits.npz runs/fashion32.npz \
        --names digits Fashion-MNIST --output benchmarks/results/editing

Each edit keeps a part of real images of known classes and draws the rest: the upper half, the luminance, or the means
of 2x2 and 4x4 patches. A classifier (benchmarks/features.py) is fitted on the images that are not edited. In a grey
image all is luminance, so that only models of colour images colourise. Writes OUTPUT.json and OUTPUT.md.
"""

import json

import torch
from features import accuracy, fit_classifier
from provenance import parser_of, provenance, table, write_report
from torch import Tensor

from diffusers_ict import Colorize, ConsistencyEditPipeline, Edit, Inpaint, SuperResolve
from diffusers_ict.data.load import load_images
from diffusers_ict.hashes import weights_hash

STEPS = (1, 2, 4, 10)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", required=True, help="class-conditional models")
    parser.add_argument("--data", nargs="+", required=True, help="of each model, as --dataset_name of train_ict.py")
    parser.add_argument("--names", nargs="+", required=True, help="of each data set")
    parser.add_argument("--samples", type=int, default=500, help="images that are edited [500]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows: list[dict] = []
    for model, data, name in zip(options.models, options.data, options.names):
        rows += measure(model, data, name, options.samples, options.seed)
    report = {**provenance(), "samples": options.samples, "seed": options.seed, "rows": rows}
    write_report(options.output, report, *lines_of(report))


def measure(model: str, data: str, name: str, count: int, seed: int) -> list[dict]:
    """One row for each edit and number of steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = ConsistencyEditPipeline.from_pretrained(model).to(device)
    pipeline.set_progress_bar_config(disable=True)
    images = load_images(dataset_name=data, class_conditional=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    edited, others = order[:count], order[count:]
    net = fit_classifier(images.pixels[others], images.labels[others])
    pixels, labels = images.pixels[edited], images.labels[edited]
    about = {"data": name, "weights": weights_hash(pipeline.unet)[:12], "classifier": accuracy(net, pixels, labels)}
    rows = []
    for title, (edit, unknown) in edits_of(*pixels.shape[1:]).items():
        for steps in STEPS:
            drawn = draw(pipeline, edit, pixels, labels, steps, seed)
            right = accuracy(net, (drawn * 127.5 + 127.5).round().to(torch.uint8), labels)
            row = {**about, "edit": title, "steps": steps, "recognised": right, **errors(edit, unknown, drawn, pixels)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def edits_of(channels: int, height: int, width: int) -> dict[str, tuple[Edit, float]]:
    """(edit, share of the coefficients that are unknown) by name, for images of that shape."""
    lower = torch.zeros(height, width)
    lower[height // 2 :] = 1
    edits: dict[str, tuple[Edit, float]] = {"inpaint the lower half": (Inpaint(lower), 1 / 2)}
    if channels == 3:
        edits["colourise"] = (Colorize(), 2 / 3)
    return edits | {f"super-resolve x{p}": (SuperResolve(p), 1 - 1 / p**2) for p in (2, 4)}


def draw(pipeline, edit: Edit, pixels: Tensor, labels: Tensor, steps: int, seed: int) -> Tensor:
    """Edited images, float32 [n, C, H, W] in [-1, 1]."""
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    parts = []
    for part, classes in zip(pixels.split(100), labels.split(100)):
        more = {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
        parts.append(pipeline(part / 255, edit, class_labels=classes, **more).images.cpu())
    return torch.cat(parts)


def errors(edit: Edit, unknown: float, drawn: Tensor, pixels: Tensor) -> dict[str, float]:
    """Root mean square error of the unknown coefficients, and the largest error of the known part."""
    difference = drawn.double() - (pixels.double() / 127.5 - 1)
    known = edit.project(difference)
    rmse = ((difference - known).square().mean() / unknown).sqrt().item()
    return {"rmse_unknown": rmse, "known_error": known.abs().max().item()}


def lines_of(report: dict) -> tuple[str, list[str]]:
    """The report as Markdown: words and a table."""
    words = (
        f", {report['samples']} images of each data set, their classes given, seed {report['seed']}.\n"
        "The models were trained on these images, too, and the classifier was not. Levels are those of the scheduler. "
        "Errors are of images in [-1, 1]; in grey images there is nothing to be colourised."
    )
    columns = ["data", "edit", "steps", "recognised", "unedited", "error of the unknown part, rms"]
    figures = {"recognised": ".3f", "classifier": ".3f", "rmse_unknown": ".3f", "known_error": ".1e"}
    cells = ([row["data"], row["edit"], str(row["steps"]), *(format(row[k], form) for k, form in figures.items())]
             for row in report["rows"])  # fmt: skip
    return words, table([*columns, "of the known, largest"], cells)


if __name__ == "__main__":
    main()
