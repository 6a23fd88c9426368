#!/usr/bin/env python
"""Measure a consistency model: FID, KID, Inception score, precision, recall, density and coverage, in one command.

    python train_scripts/evaluate.py my-model --dataset my_images --num_samples 50000 --steps 1 2 4
    accelerate launch train_scripts/evaluate.py you/my-model --dataset cifar10 --metrics fid kid is pr
    python train_scripts/evaluate.py my-model --dataset my_images --tune_sigmas 3

Every step count and every average of the weights is measured on the same noise. A stopped run goes on where it was, and
the figures do not depend on how many processes there were (they share --cache_dir). Writes evaluation.json, which tells
what was measured, and evaluation.png; renews the model card. Exit codes: 0 done, 2 bad input.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
from accelerate import Accelerator

from diffusers_ict import ICTScheduler, __version__
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.extractors import Extractor, make_extractor
from diffusers_ict.evaluation.judge import Judge
from diffusers_ict.evaluation.reference import Reference, facts_of, make_reference, read_reference
from diffusers_ict.evaluation.report import METRICS, check_metrics, settings_of, write_report
from diffusers_ict.evaluation.samples import Model, list_variants, load_model
from diffusers_ict.evaluation.tuning import Tuned, tune
from diffusers_ict.training.arguments import ArgumentParser
from diffusers_ict.training.card import write_card
from diffusers_ict.training.images import Images, load_images
from diffusers_ict.training.processes import make_accelerator
from diffusers_ict.training.receipt import code_commit, hardware

CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"
IMAGE_FILES = (".npz", ".parquet", ".arrow")
PUBLISHED = "published"  # the name of the weights that are no variant


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the flags say; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        evaluate(_parser().parse_args(words), words)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="folder or Hub id of a consistency pipeline, or a .npz, .parquet or .arrow file of images")
    add("--dataset", help="real images: folder, Hub data set, or .npz, .parquet or .arrow file")
    add("--dataset_config_name", help="configuration of the Hub data set")
    add("--dataset_split", default="train", help="split of the Hub data set [train]")
    add("--image_column", help="column of the images, where there are several")
    add("--label_column", help="column of the labels, where there are several")
    add("--image_mode", choices=("L", "RGB", "RGBA"), help="convert every real image to this mode")
    add("--resolution", type=int, help="resize the real images to this side, as training does")
    add("--center_crop", action="store_true", help="cut the middle out of real images that are not square")
    add("--image_cache_dir", help="keep decoded real images in a file there, for data larger than memory")
    add("--flip_reference", action="store_true", help="count every real image twice, as it is and mirrored")
    add("--reference", type=Path, help="reference statistics of an earlier run, instead of --dataset")
    add("--metrics", nargs="+", default=["fid"], help=f"among {', '.join(METRICS)} [fid]")
    add("--steps", nargs="+", type=int, default=[1, 2], help="numbers of sampling steps [1 2]")
    add("--variants", nargs="+", help=f"averages of the weights: {PUBLISHED}, or names of variants [all there are]")
    add("--num_samples", type=int, default=50_000, help="images drawn for each row [50000]")
    add("--labels", choices=("data", "uniform"), default="data", help="classes as frequent as in the data, or equally")
    add("--seed", type=int, default=0, help="of the noise and the labels [0]")
    add("--batch_size", type=int, default=250, help="images at once; the noise depends on it [250]")
    add("--extractor", default="inception", help="inception, dinov2, pixels, or a .py or .pt2 file [inception]")
    add("--extractor_weights", help="a local file or folder instead of a download")
    add("--tune_sigmas", type=int, metavar="STEPS", help="first find the noise levels for 2 to STEPS steps")
    add("--tune_metric", choices=("fid", "kid", "is"), default="fid", help="what the levels are chosen by [fid]")
    add("--tune_samples", type=int, help="images for each level tried [num_samples]")
    add("--output_dir", type=Path, help="where evaluation.json goes [the model, if it is a folder]")
    add("--cache_dir", type=Path, help="reference statistics and unfinished work [~/.cache/diffusers-ict]")
    return parser


def evaluate(options: argparse.Namespace, words: list[str]) -> None:
    """One evaluation, from the door to the card."""
    # ---------------------------------------------------------------- the door: everything that can be refused
    accelerator = make_accelerator("no", None, ".")
    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a moment
    _check(options)
    folder = Path(options.model) if Path(options.model).is_dir() else None
    output_dir = options.output_dir or folder or Path("evaluation")
    cache = options.cache_dir or Path(os.path.expanduser("~/.cache/diffusers-ict"))
    judged = load_images(dataset_name=options.model) if Path(options.model).suffix in IMAGE_FILES else None
    variants = [] if judged is not None else _variants(options)
    model = None if judged is not None else load_model(options.model, variants[0], accelerator.device)
    extractor = make_extractor(options.extractor, options.extractor_weights, accelerator.device)
    classes_of_data = model is not None and model.classes is not None and options.labels == "data"
    images = None

    # ---------------------------------------------------------------- the reference
    if options.dataset is not None:
        images = _read_dataset(options, classes_of_data)
        _check_shape(images.shape, judged, model)
        name = Path(options.dataset).name if Path(options.dataset).exists() else options.dataset
        facts = facts_of(images, name, options.dataset_split, options.flip_reference, extractor)
        reference = make_reference(images, facts, extractor, cache, accelerator, options.batch_size)
    else:
        if classes_of_data:
            raise UserError("--reference does not tell how frequent classes are: give --dataset, or --labels uniform.")
        reference = read_reference(options.reference, extractor)
        _check_shape(tuple(reference.facts["shape"]), judged, model)
    label_source = images if classes_of_data else None
    judge = Judge(reference, extractor, accelerator, cache / "work", options.batch_size, label_source)

    # ---------------------------------------------------------------- the figures
    count = options.num_samples if judged is None else len(judged)
    report = _facts(options, words, count, reference, extractor, accelerator)
    rows: list[dict[str, Any]] = []
    if judged is not None:
        metrics = judge.of_images(judged, options.metrics)
        rows.append({"num_inference_steps": None, "variant": None, "sigmas": None, "metrics": metrics})
        accelerator.print(_line(rows[-1]))
    elif options.tune_sigmas is not None:
        report["tuned"] = _tune(options, model, judge, accelerator, folder)
        model = load_model(options.model, variants[0], accelerator.device)  # with the levels that were written
    for variant in variants:
        if variant != model.variant:
            model = load_model(options.model, variant, accelerator.device)
        for steps in options.steps:
            levels = [float(level) for level in model.pipeline.scheduler.sampling_sigmas(steps)]
            metrics = judge.of_model(model, levels, options.num_samples, options.seed, options.metrics)
            rows.append({"num_inference_steps": steps, "variant": variant, "sigmas": levels, "metrics": metrics})
            accelerator.print(_line(rows[-1]))

    # ---------------------------------------------------------------- what is left for others
    if accelerator.is_main_process:
        write_report(output_dir, {**report, "rows": rows})
        if (output_dir / "run.json").is_file():
            write_card(output_dir, CARD_TEMPLATE)
        judge.clean()
        print(f"Written: {output_dir / 'evaluation.json'}")
    accelerator.end_training()


def _check(options: argparse.Namespace) -> None:
    """Refuse settings that cannot be used, before anything is read."""
    for name in ("num_samples", "batch_size", "tune_samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    check_metrics(options.metrics, options.num_samples)
    if (options.dataset is None) == (options.reference is None):
        raise UserError("give real images as --dataset, or their statistics as --reference, one of the two.")
    longest = ICTScheduler().config.num_train_timesteps
    if not all(1 <= steps <= longest for steps in options.steps):
        raise UserError(f"--steps must lie within 1 and {longest}, got {options.steps}.")
    if options.tune_sigmas is not None and not 2 <= options.tune_sigmas <= 8:
        raise UserError(f"--tune_sigmas must be a number of steps from 2 to 8, got {options.tune_sigmas}.")
    if options.tune_sigmas is not None and not Path(options.model).is_dir():
        raise UserError(
            "--tune_sigmas writes what it finds into the model's scheduler: give the model as a local folder."
        )


def _variants(options: argparse.Namespace) -> list[str | None]:
    """The averages of the weights to be measured; None stands for the published one."""
    there = list_variants(options.model)
    if options.variants is None:
        return [None, *there]
    if unknown := set(options.variants) - {PUBLISHED, *there}:
        raise UserError(
            f"--variants may be {', '.join([PUBLISHED, *there])} for this model, got {', '.join(sorted(unknown))}."
        )
    return [None if name == PUBLISHED else name for name in options.variants]


def _read_dataset(options: argparse.Namespace, labelled: bool) -> Images:
    """The real images, as training reads them."""
    path = Path(options.dataset)
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    is_folder = path.is_dir() and not saved
    return load_images(
        dataset_name=None if is_folder else options.dataset,
        train_data_dir=options.dataset if is_folder else None,
        dataset_config_name=options.dataset_config_name,
        split=options.dataset_split,
        image_column=options.image_column,
        label_column=options.label_column,
        class_conditional=labelled,
        resolution=options.resolution,
        center_crop=options.center_crop,
        image_mode=options.image_mode,
        cache_dir=options.image_cache_dir,
    )


def _check_shape(real: tuple[int, int, int], judged: Images | None, model: Model | None) -> None:
    """Refuse real images, [C, H, W], of another shape than those to be judged."""
    wanted = judged.shape if judged is not None else model.shape
    if real != wanted:
        (c, h, w), (channels, height, width) = real, wanted
        raise UserError(
            f"real images must be like the ones to be judged, {width}x{height} of {channels} channels, and are "
            f"{w}x{h} of {c}; give --resolution, --center_crop and --image_mode as in training."
        )


def _tune(
    options: argparse.Namespace, model: Model, judge: Judge, accelerator: Accelerator, folder: Path
) -> dict[str, Any]:
    """Search noise levels, write them if they are better, and say what came of it."""
    metric = options.tune_metric
    name = {"fid": judge.extractor.frechet, "kid": "kid", "is": "inception_score"}[metric]
    count = options.tune_samples or options.num_samples

    def figure(levels: list[float], fresh: bool) -> float:
        value = judge.of_model(model, levels, count, options.seed + fresh, [metric])[name]
        return -value if metric == "is" else value

    scheduler = model.pipeline.scheduler
    found: Tuned = tune(figure, scheduler, options.tune_sigmas)
    for steps, before in found.before.items():
        old = [float(f"{level:.4g}") for level in found.old_levels[steps]]
        accelerator.print(
            f"{steps} steps: {name} {abs(before):.5g} through {old}, {abs(found.after[steps]):.5g} through "
            f"{found.levels[: steps - 1]}"
        )
    if found.improves and accelerator.is_main_process:
        better = ICTScheduler.from_config({**scheduler.config, "intermediate_sigmas": found.levels})
        better.to_stock().save_pretrained(folder / "scheduler")
    accelerator.wait_for_everyone()
    accelerator.print("Written into the scheduler." if found.improves else "No improvement: the old levels stay.")
    return {
        "metric": name,
        "samples": count,
        "old_levels": {str(steps): levels for steps, levels in found.old_levels.items()},
        "levels": found.levels,
        "before": {str(steps): abs(value) for steps, value in found.before.items()},
        "after": {str(steps): abs(value) for steps, value in found.after.items()},
        "adopted": found.improves,
        "tried": [[[sigma, abs(value)] for sigma, value in search.tried] for search in found.searches],
    }


def _facts(
    options: argparse.Namespace,
    words: list[str],
    count: int,
    reference: Reference,
    extractor: Extractor,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What a reader has to know to repeat the figures, or to compare them."""
    portable = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return {
        "dataset": reference.facts["dataset"],
        "split": reference.facts["split"],
        "reference": reference.hash,
        "reference_images": len(reference.features),
        "flipped": reference.facts["flipped"],
        "samples": count,
        "labels": options.labels,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "extractor": extractor.name,
        "extractor_weights": extractor.weights,
        "resize": extractor.resize,
        "settings": settings_of(options.metrics, count, len(reference.features)),
        "versions": {"diffusers-ict": __version__, **{name: version(name) for name in ("torch", "diffusers")}},
        "commit": code_commit(),
        "hardware": hardware(accelerator),
        "command": shlex.join(["python", "train_scripts/evaluate.py", *portable]),
    }


def _line(row: dict[str, Any]) -> str:
    """One row, for the terminal."""
    what = (
        "images" if row["num_inference_steps"] is None else f"{row['variant'] or PUBLISHED}, steps {len(row['sigmas'])}"
    )
    return f"{what}: " + ", ".join(f"{name} {value:.5g}" for name, value in row["metrics"].items())


if __name__ == "__main__":
    sys.exit(main())
