#!/usr/bin/env python
"""Look into a consistency model, beside its training images.

    python examples/inspect_model.py my-model --dataset my_images --output_dir inspection

Leaves along_sigma.png (f(x + sigma z, sigma) for one noise and ever more of it), gap.png (how much neighbouring levels
disagree), neighbours.png (samples, and below each the training image nearest to it), for a folder of train_ict.py
losses_by_sigma.png, and inspection.json. Exit codes: 0 done, 2 bad input.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffusers_ict import karras_sigmas
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation import insight, make_extractor
from diffusers_ict.evaluation.samples import Model, drawer, labels_of, load_model
from diffusers_ict.training.arguments import ArgumentParser
from diffusers_ict.training.images import Images, load_images
from diffusers_ict.training.log import read_log
from diffusers_ict.training.samples import image_grid


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect as the flags say; returns the exit code."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--dataset", required=True, help="its training images: folder, Hub data set, or file")
    parser.add_argument("--resolution", type=int, help="resize them to this side, as training did")
    parser.add_argument("--center_crop", action="store_true", help="cut the middle out of them, as training did")
    parser.add_argument("--image_mode", choices=("L", "RGB", "RGBA"), help="convert them, as training did")
    parser.add_argument(
        "--extractor", default="pixels", help="what nearness is measured by, as in evaluate.py [pixels]"
    )
    parser.add_argument("--extractor_weights")
    parser.add_argument("--num_samples", type=int, default=1000, help="samples whose neighbours are looked for [1000]")
    parser.add_argument("--output_dir", type=Path, default=Path("inspection"))
    try:
        inspect(parser.parse_args(argv))
    except UserError as error:
        print(f"inspect_model.py: {error}", file=sys.stderr)
        return 2
    return 0


def inspect(options: argparse.Namespace) -> None:
    """Make every picture."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(options.model, None, device)
    folder = Path(options.dataset).is_dir()
    images = load_images(
        dataset_name=None if folder else options.dataset,
        train_data_dir=options.dataset if folder else None,
        resolution=options.resolution,
        center_crop=options.center_crop,
        image_mode=options.image_mode,
        class_conditional=model.classes is not None,
    )
    if images.shape != model.shape:
        (c, h, w), (channels, height, width) = images.shape, model.shape
        raise UserError(
            f"training images must be like the model's, {width}x{height} of {channels} channels, and are {w}x{h} of "
            f"{c}; convert them with --resolution and --image_mode."
        )
    extractor = make_extractor(options.extractor, options.extractor_weights, device)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    facts = along_the_noise(model, images, options.output_dir)
    facts |= neighbours(model, images, extractor, options.num_samples, options.output_dir)
    log = Path(options.model) / "log.jsonl"
    if log.is_file():
        insight.plot_losses_by_sigma(read_log(log), options.output_dir / "losses_by_sigma.png")
    (options.output_dir / "inspection.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"Nearer to a training image than to be expected: {facts['copies']:.1%} of {options.num_samples} samples.")
    print(
        f"Largest gap between neighbouring levels: {facts['largest_gap']:.3g} at sigma {facts['largest_gap_at']:.3g}."
    )
    print(f"Written: {options.output_dir}")


def along_the_noise(model: Model, images: Images, folder: Path) -> dict:
    """along_sigma.png and gap.png: one row of pictures for each image, noise growing to the right."""
    device = model.pipeline.device
    f = model.pipeline.scheduler.consistency_function(model.pipeline.unet)
    count = min(64, len(images))
    x, labels = images.batch(torch.arange(count) * (len(images) // count), None, device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas = karras_sigmas(41)
    estimates = insight.estimates_along(f, x, noise, sigmas, labels)
    gap = insight.consistency_gap(estimates)
    insight.plot_gap(sigmas, gap, folder / "gap.png")
    shown = estimates[::4, :6].transpose(0, 1).flatten(0, 1)
    picture = image_grid(insight.as_pictures(shown), 11, zoom=max(1, 48 // x.shape[-1]))
    picture.save(folder / "along_sigma.png")
    worst = int(gap.argmax())
    return {
        "sigmas": sigmas.tolist(),
        "gap": gap.tolist(),
        "largest_gap": gap[worst].item(),
        "largest_gap_at": sigmas[worst + 1].item(),
    }


def neighbours(model: Model, images: Images, extractor, count: int, folder: Path) -> dict:
    """neighbours.png: the samples that are nearest to a training image, each above that image."""
    levels = [float(level) for level in model.pipeline.scheduler.sampling_sigmas(2)]
    draw = drawer(model, labels_of(model, images if model.classes else None, 0), 0, levels)
    drawn = torch.cat([draw(start, min(250, count - start)) for start in range(0, count, 250)]).cpu()
    features, training = (
        torch.cat([extractor.features(part)[0] for part in pixels.split(250)]) for pixels in (drawn, images.pixels)
    )
    found = insight.memorisation(features, training)
    first = found.distances.argsort()[:12]
    pairs = torch.cat([drawn[first], images.pixels[found.indices[first]]]).float() / 127.5 - 1
    picture = image_grid(insight.as_pictures(pairs), len(first), zoom=max(1, 64 // images.shape[-1]))
    picture.save(folder / "neighbours.png")
    return {
        "samples": count,
        "extractor": extractor.name,
        "copies": found.copies,
        "nearest_distance_quantiles": np.quantile(found.distances.numpy(), [0, 0.05, 0.5, 0.95]).tolist(),
        "typical_distance_within_training": found.typical,
    }


if __name__ == "__main__":
    sys.exit(main())
