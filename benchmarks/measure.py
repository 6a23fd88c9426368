#!/usr/bin/env python
"""Measure a trained model with one and two steps: Frechet distance, precision and recall against the whole data.

    python benchmarks/measure.py my-model --data fashion32.npz --samples 10000 --output benchmarks/results/fashion32_ict

With --start, the DDPM that the model was tuned from, with classes, is measured beside it with 50 DDIM steps.
Writes OUTPUT.json, OUTPUT.md, and grids of samples OUTPUT-1.png and OUTPUT-2.png. The features are those of a small
classifier that is fitted on the data first (benchmarks/features.py), or of a Python file.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline
from features import features as classifier_features
from features import fit_classifier, labelled_images
from provenance import parser_of, provenance, table, write_report
from torch import Tensor

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.data.dataset import Images
from diffusers_ict.evaluation import coverage_measures, frechet_distance
from diffusers_ict.evaluation.extractors import make_extractor
from diffusers_ict.image_grid import image_grid

Extractor = Callable[[Tensor], Tensor]  # uint8 images on the CPU -> features [n, d]


def load_extractor(file: str | None, images: Images, device: str) -> tuple[Extractor, str]:
    """(features, what they are): the classifier's, or those of a file that evaluate.py takes as --extractor."""
    if file is None:
        net = fit_classifier(images.pixels, images.labels)
        named = "64 features of the classifier in benchmarks/features.py"
        return lambda pixels: classifier_features(net, pixels), named
    extractor = make_extractor(file, device=device)
    return lambda pixels: torch.cat([extractor.features(part)[0] for part in pixels.split(500)]), extractor.name


def draw(pipeline: DiffusionPipeline, steps: int, count: int, seed: int, **sampling: float) -> Tensor:
    """uint8 images [count, C, H, W]; of random classes, where there are classes; `sampling` is for the pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    parts = []
    for start in range(0, count, 500):
        size = min(500, count - start)
        drawn = pipeline(size, num_inference_steps=steps, generator=generator, output_type="pt", **sampling).images
        parts.append((drawn * 255).round().to(torch.uint8).cpu())
    return torch.cat(parts)


@torch.no_grad()
def draw_ddim(folder: str, device: str, steps: int, count: int, seed: int) -> Tensor:
    """uint8 images [count, C, H, W] of random classes from the folder of a DDPM, by DDIM (arXiv:2010.02502)."""
    unet = DDPMPipeline.from_pretrained(folder).unet.to(device)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="trailing")
    generator, config, parts = torch.Generator(device).manual_seed(seed), unet.config, []
    for start in range(0, count, 500):
        shape = (min(500, count - start), config.in_channels, config.sample_size, config.sample_size)
        sample = torch.randn(shape, generator=generator, device=device)
        labels = torch.randint(config.num_class_embeds, shape[:1], generator=generator, device=device)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            sample = scheduler.step(unet(sample, t, labels).sample, t, sample).prev_sample
        parts.append(((sample.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
    return torch.cat(parts)


def nearest(points: Tensor, among: Tensor) -> Tensor:
    """The distance of each point to the nearest of others: [n, d], [m, d] -> [n]."""
    return torch.cat([torch.cdist(part, among.double()).amin(1) for part in points.double().split(500)])


def evaluate(
    pipeline: DiffusionPipeline,
    grid: Path,
    extract: Extractor,
    real: Tensor,
    count: int,
    held_out: Tensor | None = None,
    **sampling: float,
) -> dict:
    """The figures by number of steps, as a string; writes GRID-1.png and GRID-2.png with 64 samples each.

    Args:
        sampling: for the pipeline's call, such as `guidance_scale`.
        real, held_out: features of the images that were trained on, and of others: with these, `nearer` is the share of
            samples that are nearer to an image of training than half of the others are.
    """
    usual = None if held_out is None else nearest(held_out[:5000], real).median()
    out = {}
    for steps in (1, 2):
        images = draw(pipeline, steps, count, seed=1234, **sampling)
        fake = extract(images)
        out[f"{steps}"] = figures(fake, real)
        if usual is not None:
            out[f"{steps}"]["nearer"] = (nearest(fake[:5000], real) < usual).double().mean().item()
        first = images[:64].permute(0, 2, 3, 1).numpy() / 255
        image_grid(first, 16, zoom=2).save(f"{grid}-{steps}.png")
    return out


def figures(fake: Tensor, real: Tensor) -> dict[str, float]:
    """Frechet distance, precision and recall of features."""
    measures = coverage_measures(real[:5000], fake[:5000])
    return {"frechet": frechet_distance(real, fake), **{name: measures[name] for name in ("precision", "recall")}}


def training_of(folder: Path) -> dict:
    """How the model of a folder was trained, as its run says; of a model from elsewhere nothing is known."""
    path = folder / "run.json"
    told = json.loads(path.read_text()) if path.is_file() else {}
    return {name: told.get(name) for name in ("command", "commit", "hardware", "batch_size", "steps", "train_seconds")}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("model", help="a folder, or a model on the Hub")
    parser.add_argument("--data", required=True, help="what train_ict.py takes as --dataset_name or --train_data_dir")
    parser.add_argument("--start", help="folder of the DDPM that the model was tuned from")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--variant", help="weights other than the published ones, such as ema999")
    parser.add_argument("--features", help="a .py or .pt2 file, as evaluate.py takes it [a classifier]")
    parser.add_argument("--samples", type=int, default=10_000)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = labelled_images(options.data, options.resolution)
    extract, features = load_extractor(options.features, images, device)
    pipeline = ConsistencyPipeline.from_pretrained(options.model, variant=options.variant).to(device)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    real = extract(images.pixels)
    results = evaluate(pipeline, options.output, extract, real, options.samples)
    if options.start:
        results["DDPM, 50 DDIM steps"] = figures(
            extract(draw_ddim(options.start, device, 50, options.samples, seed=1234)), real
        )
    report = {
        **provenance(),
        "samples": options.samples,
        "features": features,
        "rows": [{**training_of(Path(options.model)), "results": results}],
    }
    cells = [[n, f"{r['frechet']:.3g}", f"{r['precision']:.2f}", f"{r['recall']:.2f}"] for n, r in results.items()]
    lines = table(["steps", "Frechet", "precision", "recall"], cells)
    write_report(options.output, report, f", {options.samples} samples, {features}.", lines)


if __name__ == "__main__":
    main()
