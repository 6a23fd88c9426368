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
from pathlib import Path

import numpy as np
import torch

from diffusers_ict import karras_sigmas
from diffusers_ict.commands.program import run_program
from diffusers_ict.data.dataset import Images
from diffusers_ict.data.settings import DataSettings
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation import analysis, make_extractor
from diffusers_ict.evaluation.samples import Model, drawer, labels_of, load_model
from diffusers_ict.files import write_json
from diffusers_ict.hub.card import write_card
from diffusers_ict.hub.metadata import RunMetadata
from diffusers_ict.image_grid import as_pictures, labelled_blocks
from diffusers_ict.settings import ArgumentParser, add_flags
from diffusers_ict.training.log import read_log


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
    model = load_model(options.model, None, device)
    images = data.load(class_conditional=model.classes is not None)
    if images.shape != model.shape:
        (c, h, w), (channels, height, width) = images.shape, model.shape
        raise UserError(
            f"training images must be like the model's, {width}x{height} of {channels} channels, and are {w}x{h} of "
            f"{c}; convert them with `resolution` and `image_mode`."
        )
    extractor = make_extractor(options.extractor, options.extractor_weights, device)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    report = along_the_noise(model, images, options.output_dir)
    report |= neighbours(model, images, extractor, options.num_samples, options.output_dir)
    log = Path(options.model) / "log.jsonl"
    if log.is_file():
        analysis.plot_losses_by_sigma(read_log(log), options.output_dir / "losses_by_sigma.png")
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


def along_the_noise(model: Model, images: Images, folder: Path) -> dict:
    """along_sigma.png and gap.png: the first noisy image, then f of six images, with noise growing to the right."""
    device = model.pipeline.device
    f = model.pipeline.scheduler.consistency_function(model.pipeline.unet)
    count = min(64, len(images))
    x, labels = images.batch(torch.arange(count) * (len(images) // count), None, device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas = karras_sigmas(41)
    estimates = analysis.estimates_along(f, x, noise, sigmas, labels)
    gap = analysis.consistency_gap(estimates)
    analysis.plot_gap(sigmas, gap, folder / "gap.png")
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


def neighbours(model: Model, images: Images, extractor, count: int, folder: Path) -> dict:
    """neighbours.png: the samples that are nearest to a training image, each above that image, by distance."""
    levels = [float(level) for level in model.pipeline.scheduler.sampling_sigmas(2)]
    draw = drawer(model, labels_of(model, images if model.classes else None, 0), 0, levels)
    drawn = torch.cat([draw(start, min(250, count - start)) for start in range(0, count, 250)]).cpu()
    starts = range(0, len(images), 250)
    parts = drawn.split(250), (images.part(slice(start, start + 250))[0] for start in starts)
    features, training = (torch.cat([extractor.features(part)[0] for part in pixels]) for pixels in parts)
    found = analysis.memorisation(features, training)
    first = found.distances.argsort()[:12]
    pair = {"sample": drawn[first], "nearest image": images.part(found.indices[first])[0]}
    blocks = {name: as_pictures(pixels.float() / 127.5 - 1) for name, pixels in pair.items()}
    distances = [f"{distance:.3g}" for distance in found.distances[first].tolist()]
    labelled_blocks(blocks, len(first), distances).save(folder / "neighbours.png")
    return {
        "samples": count,
        "extractor": extractor.name,
        "copies": found.copies,
        "nearest_distance_quantiles": np.quantile(found.distances.numpy(), [0, 0.05, 0.5, 0.95]).tolist(),
        "typical_distance_within_training": found.typical,
    }


if __name__ == "__main__":
    sys.exit(main())
