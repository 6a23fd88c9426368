"""One evaluation, from reading the real images to renewing the model card."""

import os
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
from accelerate import Accelerator
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

from ..data.dataset import Images
from ..data.draw import EVALUATION, derive_seed
from ..data.load import load_images
from ..data.sources import holds_images
from ..errors import UserError, first_line
from ..files import check_writable, portable, public_name, staged_folder
from ..hub.card import write_card
from ..hub.metadata import RunMetadata
from ..hub.provenance import code_commit, hardware
from ..processes import make_accelerator
from ..scheduling_ict import ICTScheduler
from ..version import __version__
from .evaluator import Evaluator
from .extractors import Extractor, make_extractor
from .metric import METRICS, Figures, Metric, check_images, named_metrics, settings_of
from .reference import Reference, describe_reference, make_reference, read_reference
from .report import write_report
from .samples import Model, list_variants, load_model
from .settings import IMAGE_FILES, EvaluationSettings
from .tuning import Tuned, tune
from .work import WorkFolders

PUBLISHED_WEIGHTS = "published"  # the name of the weights that are no variant


def evaluate(
    model_name: str,
    settings: EvaluationSettings,
    words: Sequence[str] = (),
    metrics: Sequence[Metric] | None = None,
) -> dict[str, Any]:
    """Measure a model, or images of a file or a folder, and write the report.

    Args:
        model_name: folder or Hub id of a consistency pipeline, or a file or folder of images.
        words: the command line, for the report.
        metrics: instead of those that the settings name.

    Returns:
        The report, as written to evaluation.json.

    Raises:
        UserError: the model or the data cannot be measured, or the report cannot be written; what was measured stays
            in the cache.
    """
    # ---------------------------------------------------------------- checks
    accelerator = make_accelerator("no", None, ".")
    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a moment
    metrics = list(named_metrics(settings.metrics) if metrics is None else metrics)
    images = _images_to_measure(Path(model_name))
    folder = Path(model_name) if Path(model_name).is_dir() and images is None else None
    _check(settings, folder, metrics)
    output_dir = Path(settings.output_dir) if settings.output_dir else folder or Path("evaluation")
    cache = Path(settings.cache_dir or os.path.expanduser("~/.cache/diffusers-ict"))
    subject: Images | Model
    if images is not None:
        subject, variants = load_images(**images), []
    else:
        variants = _variants(settings, model_name)
        subject = load_model(model_name, variants[0], accelerator.device)
    for name, place in (("output_dir", output_dir), ("cache_dir", cache)):
        check_writable(name, place)
    extractor = make_extractor(settings.extractor, settings.extractor_weights, accelerator.device)

    # ---------------------------------------------------------------- the reference
    reference, label_source = _reference(settings, subject, extractor, cache, accelerator)

    # ---------------------------------------------------------------- the figures
    count = len(subject) if isinstance(subject, Images) else settings.num_samples
    with WorkFolders(cache, accelerator) as work:
        evaluator = Evaluator(reference, extractor, accelerator, work, settings.batch_size, label_source)
        report = _describe(settings, words, count, metrics, evaluator)
        if not isinstance(subject, Images) and settings.tune_sigmas is not None and folder is not None:
            report["tuned"] = _tune(settings.tune_sigmas, settings, subject, evaluator, folder)
        report["rows"] = []
        for row, higher in _rows(settings, model_name, subject, variants, metrics, evaluator):
            report["rows"].append(row)
            report["higher_is_better"] = higher
            accelerator.print(_line(row))

        # ------------------------------------------------------------ the report
        if accelerator.is_main_process:
            _write(output_dir, report)
            work.clean()
            print(f"Written: {output_dir / 'evaluation.json'}")
    accelerator.end_training()
    return report


def _rows(
    settings: EvaluationSettings,
    model_name: str,
    subject: Images | Model,
    variants: Sequence[str | None],
    metrics: Sequence[Metric],
    evaluator: Evaluator,
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """(row of the report, names of its figures of which higher is better), one for each variant and step count."""

    def row(found: Figures, variant: str | None = None, sigmas: list[float] | None = None):
        steps = None if sigmas is None else len(sigmas)
        figures = {name: value for part in found.values() for name, value in part.items()}
        higher = [name for m in metrics if m.higher_is_better for name in found[m.name]]
        return {"num_inference_steps": steps, "variant": variant, "sigmas": sigmas, "metrics": figures}, higher

    if isinstance(subject, Images):
        yield row(evaluator.of_images(subject, metrics))
    for variant in variants:
        model = load_model(model_name, variant, evaluator.accelerator.device)  # with the levels just written
        for steps in settings.steps:
            sigmas = [float(sigma) for sigma in model.pipeline.scheduler.sampling_sigmas(steps)]
            yield row(evaluator.of_model(model, sigmas, settings.num_samples, settings.seed, metrics), variant, sigmas)


def _write(output_dir: Path, report: dict[str, Any]) -> None:
    """Write the report, and renew the card of a run.

    Raises:
        UserError: a file cannot be written; the samples are kept.
    """
    try:
        write_report(output_dir, report)
        if (output_dir / RunMetadata.file_name).is_file():
            write_card(output_dir)
    except OSError as error:
        raise UserError(
            f"the report cannot be written into {output_dir}: {first_line(error)}; what was measured is kept in "
            "`cache_dir`, and the same command continues there."
        ) from error


def _images_to_measure(path: Path) -> dict[str, Any] | None:
    """The arguments of `load_images` for images that are measured as they are, or None where `path` is a model.

    A run that has published no model yet has grids of samples in its folder, which are no images to be measured.
    """
    if path.suffix in IMAGE_FILES:
        return {"dataset_name": str(path)}
    model = any((path / name).is_file() for name in ("model_index.json", "recipe.yaml"))
    return {"train_data_dir": str(path)} if path.is_dir() and not model and holds_images(path) else None


def _check(settings: EvaluationSettings, folder: Path | None, metrics: Sequence[Metric]) -> None:
    """Refuse settings that cannot be used, before anything is read; `folder` is that of the model, if it is local."""
    check_images(metrics, settings.num_samples)
    for name, values in (("metrics", metrics), ("steps", settings.steps), ("variants", settings.variants)):
        if values is not None and not values:
            raise UserError(f"`{name}` needs at least one value, got none.")
    if bool(settings.data_name) == (settings.reference is not None):
        raise UserError(
            "give real images as `dataset_name` or `train_data_dir`, or their statistics as `reference`, one of the "
            "three."
        )
    longest = ICTScheduler().config.num_train_timesteps
    if not all(1 <= steps <= longest for steps in settings.steps):
        raise UserError(f"`steps` must lie within 1 and {longest}, got {settings.steps}.")
    if settings.tune_sigmas is not None and not 2 <= settings.tune_sigmas <= 8:
        raise UserError(f"`tune_sigmas` must be a number of steps from 2 to 8, got {settings.tune_sigmas}.")
    if settings.tune_sigmas is not None and folder is None:
        raise UserError(
            "`tune_sigmas` writes what it finds into the model's scheduler: give the model as a local folder."
        )


def _variants(settings: EvaluationSettings, model_name: str) -> list[str | None]:
    """The averages of the weights to be measured; None stands for the published one."""
    there = list_variants(model_name)
    if settings.variants is None:
        return [None, *there]
    if unknown := set(settings.variants) - {PUBLISHED_WEIGHTS, *there}:
        allowed = ", ".join([PUBLISHED_WEIGHTS, *there])
        raise UserError(f"`variants` may be {allowed} for this model, got {', '.join(sorted(unknown))}.")
    return [None if name == PUBLISHED_WEIGHTS else name for name in settings.variants]


def _reference(
    settings: EvaluationSettings,
    subject: Images | Model,
    extractor: Extractor,
    cache: Path,
    accelerator: Accelerator,
) -> tuple[Reference, Images | None]:
    """The statistics to compare with, and the images whose classes samples are drawn as frequently as, or None."""
    classes_of_data = isinstance(subject, Model) and subject.classes is not None and settings.labels == "data"
    if settings.reference is not None:
        if classes_of_data:
            raise UserError("`reference` does not say how frequent classes are: give the data, or `labels` uniform.")
        reference = read_reference(Path(settings.reference), extractor)
        _check_shape(tuple(reference.description["shape"]), subject.shape)
        return reference, None
    images = settings.load(class_conditional=classes_of_data)
    _check_shape(images.shape, subject.shape)
    name, _ = public_name(settings.data_name)
    description = describe_reference(images, name, settings.dataset_split, settings.flip_reference, extractor)
    reference = make_reference(images, description, extractor, cache, accelerator, settings.batch_size)
    return reference, images if classes_of_data else None


def _check_shape(real: tuple[int, ...], wanted: tuple[int, int, int]) -> None:
    """Refuse real images, (C, H, W), of another shape than those to be measured."""
    if real != wanted:
        (c, h, w), (channels, height, width) = real, wanted
        raise UserError(
            f"real images must be like the ones to be measured, {width}x{height} of {channels} channels, and are "
            f"{w}x{h} of {c}; give `resolution`, `center_crop` and `image_mode` as in training."
        )


def _tune(steps: int, settings: EvaluationSettings, model: Model, evaluator: Evaluator, folder: Path) -> dict[str, Any]:
    """Search noise levels for up to so many steps, write them if they are better, and describe the search.

    The search has noise of its own. The old levels and the new are compared on the noise of the report's rows, so that
    no reported figure is one that the levels were chosen by.
    """
    metric = METRICS[settings.tune_metric]
    count = settings.tune_samples or settings.num_samples
    accelerator = evaluator.accelerator
    sign = -1 if metric.higher_is_better else 1
    search_seed = derive_seed(settings.seed, EVALUATION)
    name = ""

    def figure(levels: list[float], fresh: bool) -> float:
        nonlocal name
        seed = settings.seed if fresh else search_seed
        figures = evaluator.of_model(model, levels, count, seed, [metric])[metric.name]
        name = next(iter(figures))
        return sign * figures[name]

    scheduler = model.pipeline.scheduler
    found: Tuned = tune(figure, scheduler, steps)
    for n, before in found.before.items():
        old = [float(f"{level:.4g}") for level in found.old_levels[n]]
        accelerator.print(
            f"{n} steps: {name} {sign * before:.5g} through {old}, {sign * found.after[n]:.5g} through "
            f"{found.levels[: n - 1]}"
        )
    if found.improves and accelerator.is_main_process:
        better = ICTScheduler.from_config(scheduler.config, intermediate_sigmas=found.levels)
        with staged_folder(folder / "scheduler", SCHEDULER_CONFIG_NAME) as staged:
            better.to_stock().save_pretrained(staged)
    accelerator.wait_for_everyone()
    accelerator.print("Written into the scheduler." if found.improves else "No improvement: the old levels stay.")
    return {"metric": name, "samples": count, "search_seed": search_seed, **found.as_dict(sign)}


def _describe(
    settings: EvaluationSettings,
    words: Sequence[str],
    count: int,
    metrics: Sequence[Metric],
    evaluator: Evaluator,
) -> dict[str, Any]:
    """The facts that a reader needs to repeat or compare the figures."""
    reference, extractor = evaluator.reference, evaluator.extractor
    return {
        "dataset": reference.description["dataset"],
        "split": reference.description["split"],
        "reference": reference.hash,
        "reference_images": len(reference.features),
        "flipped": reference.description["flipped"],
        "samples": count,
        "labels": settings.labels,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "extractor": extractor.name,
        "extractor_weights": extractor.weights,
        "resize": extractor.resize,
        "settings": settings_of(metrics, count, len(reference.features)),
        "versions": {"diffusers-ict": __version__, **{name: version(name) for name in ("torch", "diffusers")}},
        "commit": code_commit(),
        "hardware": hardware(evaluator.accelerator),
        "command": shlex.join(["python", "train_scripts/evaluate.py", *map(portable, words)]),
    }


def _line(row: dict[str, Any]) -> str:
    """One row, for the terminal."""
    what = "images" if row["sigmas"] is None else f"{row['variant'] or PUBLISHED_WEIGHTS}, steps {len(row['sigmas'])}"
    return f"{what}: " + ", ".join(f"{name} {value:.5g}" for name, value in row["metrics"].items())
