#!/usr/bin/env python
"""Look into a consistency model, beside its training images.

    python examples/inspect_model.py my-model --train_data_dir my_images --output_dir inspection

Writes along_sigma.png (f(x + sigma z, sigma) for one noise and ever more of it), gap.png (how much neighbouring levels
disagree), neighbours.png (samples, and below each the training image nearest to it), for a folder of train_ict.py
losses_by_sigma.png, and inspection.json. A model that is a folder gets a copy of inspection.json; the card of a run is
renewed with its findings. Exit codes: 0 done, 2 bad input.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ict import ConsistencyPipeline, karras_sigmas
from diffusers_ict.commands.program import run_program
from diffusers_ict.data.dataset import Images
from diffusers_ict.data.load import load_images
from diffusers_ict.data.settings import DataSettings
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation import make_extractor
from diffusers_ict.evaluation.metrics import centred, neighbour_distances
from diffusers_ict.evaluation.samples import drawer, image_shape
from diffusers_ict.files import atomic_file, write_json
from diffusers_ict.hub.card import write_card
from diffusers_ict.hub.metadata import RunMetadata
from diffusers_ict.image_grid import as_pictures, labelled_blocks
from diffusers_ict.pipeline_consistency import load_consistency
from diffusers_ict.settings import ArgumentParser, add_flags
from diffusers_ict.training.log import read_log

STAGES = {"num_levels": "N", "stage": "stage"}  # what logs count the stages of a run by, and its name in plots


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect as the flags say; returns the exit code."""
    return run_program("inspect_model.py", lambda: inspect(*parse(argv)))


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, DataSettings]:
    """(what is inspected and how, which training images)."""
    parser = ArgumentParser("inspect_model.py", __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--extractor", default="pixels", help="features that nearness is measured by [pixels]")
    parser.add_argument("--extractor_weights", help="a local file or folder instead of a download")
    parser.add_argument("--num_samples", type=int, default=1000, help="samples whose neighbours are looked for [1000]")
    parser.add_argument("--output_dir", type=Path, default=Path("inspection"), help="a folder [inspection]")
    add_flags(parser, {"the training images": DataSettings})
    options = parser.parse_args(argv)
    names = {field.name for field in dataclasses.fields(DataSettings)}
    return options, DataSettings(**{name: value for name, value in vars(options).items() if name in names})


def inspect(options: argparse.Namespace, data: DataSettings) -> None:
    """Make every picture."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_consistency(options.model).to(device)
    images = load_images(data, class_conditional=pipeline.unet.config.num_class_embeds is not None)
    if images.shape != image_shape(pipeline):
        (c, h, w), (channels, height, width) = images.shape, image_shape(pipeline)
        raise UserError(
            f"training images must be like the model's, {width}x{height} of {channels} channels, and are {w}x{h} of "
            f"{c}; convert them with `resolution` and `image_mode`."
        )
    extractor = make_extractor(options.extractor, options.extractor_weights, device)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    report = along_the_noise(pipeline, images, options.output_dir)
    report |= neighbours(pipeline, images, extractor, options.num_samples, options.output_dir)
    log = Path(options.model) / "log.jsonl"
    if log.is_file():
        plot_losses_by_sigma(read_log(log), options.output_dir / "losses_by_sigma.png")
    write_json(options.output_dir / "inspection.json", report)
    if Path(options.model).is_dir():
        write_json(Path(options.model) / "inspection.json", report)
    if (Path(options.model) / RunMetadata.file_name).is_file():
        write_card(Path(options.model))
    print(f"Nearer to a training image than expected: {report['copies']:.1%} of {options.num_samples} samples.")
    print(
        f"Largest gap between neighbouring levels: {report['largest_gap']:.3g} at sigma {report['largest_gap_at']:.3g}."
    )
    print(f"Written: {options.output_dir}")


def along_the_noise(pipeline: ConsistencyPipeline, images: Images, folder: Path) -> dict:
    """along_sigma.png and gap.png: the first noisy image, then f of six images, with noise growing to the right."""
    device = pipeline.device
    f = pipeline.scheduler.consistency_function(pipeline.unet)
    count = min(64, len(images))
    pixels, labels = images.part(torch.arange(count) * (len(images) // count))
    x, labels = pixels.to(device).float() / 127.5 - 1, None if labels is None else labels.to(device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas = karras_sigmas(41)
    estimates = estimates_along(f, x, noise, sigmas, labels)
    gap = consistency_gap(estimates)
    plot_gap(sigmas, gap, folder / "gap.png")
    levels, rows = sigmas[::4], 6
    noisy = torch.stack([x[:rows] + sigma.to(x) * noise[:rows] for sigma in levels])
    blocks = {
        "x + sigma z": as_pictures(noisy[:, :1].flatten(0, 1)),
        "f(x + sigma z, sigma)": as_pictures(estimates[::4, :rows].transpose(0, 1).flatten(0, 1)),
    }
    labelled_blocks(blocks, len(levels), [f"{sigma:.3g}" for sigma in levels]).save(folder / "along_sigma.png")
    worst = int(gap.argmax())
    return {
        "sigmas": sigmas.tolist(),
        "gap": gap.tolist(),
        "largest_gap": gap[worst].item(),
        "largest_gap_at": sigmas[worst + 1].item(),
    }


def neighbours(pipeline: ConsistencyPipeline, images: Images, extractor, count: int, folder: Path) -> dict:
    """neighbours.png: the samples that are nearest to a training image, each above that image, by distance."""
    levels = [float(level) for level in pipeline.scheduler.sampling_sigmas(2)]
    draw = drawer(pipeline, images if pipeline.unet.config.num_class_embeds else None, 0, levels)
    drawn = torch.cat([draw(numbers).cpu() for numbers in torch.arange(count).split(250)])
    features, training = (
        torch.cat([extractor.features(part(numbers))[0] for numbers in torch.arange(total).split(250)])
        for part, total in ((lambda rows: drawn[rows], count), (lambda rows: images.part(rows)[0], len(images)))
    )
    distances, indices, typical, copies = memorisation(features, training)
    first = distances.argsort()[:12]
    pair = {"sample": drawn[first], "nearest image": images.part(indices[first])[0]}
    blocks = {name: as_pictures(pixels.float() / 127.5 - 1) for name, pixels in pair.items()}
    names = [f"{distance:.3g}" for distance in distances[first].tolist()]
    labelled_blocks(blocks, len(first), names).save(folder / "neighbours.png")
    return {
        "samples": count,
        "extractor": extractor.name,
        "copies": copies,
        "nearest_distance_quantiles": np.quantile(distances.numpy(), [0, 0.05, 0.5, 0.95]).tolist(),
        "typical_distance_within_training": typical,
    }


@torch.no_grad()
def estimates_along(f, x: Tensor, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """f(x + sigma z, sigma) for every level: what the model makes of ever noisier versions of the same images.

    Args:
        f: a `ConsistencyFunction`.
        x, noise: [B, C, H, W], images in [-1, 1]; sigmas: [N]; labels: [B] or None.

    Returns:
        [N, B, C, H, W]. A perfectly consistent model gives the same for every level of one trajectory; x + sigma z is
        one only near the data, so estimates drift apart as noise grows, but smoothly.
    """
    levels = [sigma.repeat(len(x)).to(x.device) for sigma in sigmas]
    return torch.stack([f(x + sigma.to(x) * noise, level, labels) for sigma, level in zip(sigmas, levels)])


def consistency_gap(estimates: Tensor) -> Tensor:
    """Root mean square difference between the estimates at neighbouring levels: [N, B, C, H, W] -> [N - 1].

    What training makes small, before weights: iCT (arXiv:2310.14189) Eq. 1 with the squared distance.
    """
    return (estimates[1:] - estimates[:-1]).square().flatten(1).mean(1).sqrt()


def memorisation(samples: Tensor, training: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """How near samples [n, d] are to training images [m, d], by features.

    Returns:
        Distance to the nearest training image, and which it is, for each sample [n]; the median distance of a training
        image to the nearest other one; the share of samples that are copies: nearer to a training image than half of
        that image's distance to any other one.
    """
    samples, training = centred(samples, training)
    parts = [torch.cdist(rows, training).min(1) for rows in samples.split(1000)]
    distances, indices = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    (spacing,) = neighbour_distances(training, (1,))
    copies = (distances < spacing[indices] / 2).double().mean().item()
    return distances, indices, spacing.median().item(), copies


def switches(entries: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(step, N or stage) wherever it has changed, from the entries of a run's log."""
    pairs = list(pairwise(entries))
    return [(b["step"], b[key]) for key in STAGES for a, b in pairs if key in b and a.get(key) != b[key]]


def plot_losses_by_sigma(entries: list[dict[str, Any]], target: Path) -> None:
    """Loss over the steps, one line for each range of noise levels, with its `switches` marked, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no global state and no display

    names = list(dict.fromkeys(name for entry in entries for name in entry["loss_by_sigma"]))
    names.sort(key=lambda name: float(name.split("-")[0]))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        points = [(e["step"], e["loss_by_sigma"][name]) for e in entries if name in e["loss_by_sigma"]]
        axes.plot(*zip(*points), linewidth=0.9, label=name, color=colormaps["viridis"](number / max(1, len(names) - 1)))
    for step, stage in switches(entries):
        axes.axvline(step, color="grey", linewidth=0.6, linestyle="dotted")
        axes.annotate(f"{stage}", (step, 1), xycoords=("data", "axes fraction"), fontsize=7, ha="left", va="bottom")
    name = "".join(name for key, name in STAGES.items() if entries and key in entries[0])
    note = f" (dotted: {name} becomes the number above)" if name else ""
    axes.set(yscale="log", xlabel=f"optimizer step{note}", ylabel="weighted loss")
    axes.legend(title="sigma", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def plot_gap(sigmas: Tensor, gap: Tensor, target: Path) -> None:
    """The gap between neighbouring levels over sigma, as PNG. A consistent model has a small and smooth one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sigmas[1:].cpu(), gap.cpu(), marker=".")
    worst = int(gap.argmax())
    axes.annotate(f"largest: {gap[worst]:.2g}", (sigmas[worst + 1].item(), gap[worst].item()), (6, 0),
                  textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="sigma", ylabel="RMS difference of neighbouring outputs")
    axes.set_title(f"Gap between neighbours of {len(sigmas)} levels: lower and smoother is better", fontsize=10)
    axes.margins(x=0.15)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    sys.exit(main())
