"""One evaluation, from reading the real images to renewing the model card."""

import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

from ..data.dataset import Images
from ..data.draw import EVALUATION, derive_seed
from ..data.load import load_images
from ..data.own_output import check_apart
from ..data.settings import DataSettings
from ..data.sources import holds_images
from ..errors import UserError
from ..files import check_writable, portable, staged_folder, write_json
from ..hub.card import write_card
from ..hub.metadata import RunMetadata
from ..hub.provenance import code_commit, hardware
from ..invocation import command_words
from ..loading import load_consistency
from ..names import shell, visible
from ..pipeline_consistency import ConsistencyPipeline
from ..processes import make_accelerator
from ..scheduling_ict import ICTScheduler
from ..settings import check_bounds
from ..version import __version__
from .evaluator import Evaluator, Subject, make_evaluator
from .features import ImagesByNumber
from .paired import PAIRED
from .report import PUBLISHED, plot_quality, table_lines
from .samples import list_variants
from .selection import METRICS, Figures, Metric
from .settings import EvaluationSettings
from .tuning import tune

IMAGE_FILES = (".npz", ".parquet", ".arrow")


def evaluate(
    model_name: str, settings: EvaluationSettings, words: Sequence[str] = (), metrics: Sequence[Metric] | None = None
) -> dict[str, Any]:
    """Measure a model, or images of a file or a folder, and write the report.

    Args:
        model_name: folder or Hub id of a consistency pipeline, or a file or folder of images.
        words: the command line, for the report; metrics: instead of those that the settings name.

    Returns:
        The report, as written to evaluation.json.

    Raises:
        UserError: the model or the data cannot be measured.
        OSError: the report cannot be written.
    """
    accelerator = make_accelerator("no", None, ".")
    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a moment
    measured = _images_to_measure(Path(model_name))
    folder = Path(model_name) if Path(model_name).is_dir() and measured is None else None
    metrics = _checked_metrics(settings, folder, metrics)
    output_dir = Path(settings.output_dir) if settings.output_dir else folder or Path("evaluation")
    check_writable("output_dir", output_dir)
    for data in filter(None, (settings, measured)):
        check_apart(data, "output_dir", output_dir)
    variants = [] if measured else _variants(settings, model_name)
    subject: Subject
    if measured:
        subject = load_images(measured, accelerator=accelerator)
    else:
        subject = load_consistency(model_name, variants[0]).to(accelerator.device)
        if settings.guidance_scales != [1.0] and settings.guide is None and not subject.unlabelled:
            raise UserError(
                "`guidance_scales` needs `guide`, an average of the weights, because the model was not trained with "
                "label_dropout."
            )
    evaluator = make_evaluator(settings, subject, metrics, accelerator)

    report = _describe(evaluator, words)
    if settings.tune_sigmas is not None and isinstance(subject, ConsistencyPipeline) and folder is not None:
        report["tuned"] = _tune(settings.tune_sigmas, subject, evaluator, folder)
    report["rows"] = []
    for images, row in _rows(model_name, subject, variants, evaluator):
        variant, steps = row["variant"], row["num_inference_steps"]
        name = f"{variant or PUBLISHED}, steps {steps}" if steps else "images"
        figures, higher = evaluator.figures(images, evaluator.count, metrics, name)
        figures |= evaluator.closeness(images, name)
        report["higher_is_better"] = [*higher, *(metric.name for metric in evaluator.paired if metric.higher_is_better)]
        report["rows"].append({**row, "metrics": figures})
        accelerator.print("\n".join(table_lines(report["rows"], [variant or PUBLISHED for variant in variants])))
    if accelerator.is_main_process:
        _write(report, output_dir)
    accelerator.end_training()
    return report


def _write(report: dict[str, Any], output_dir: Path) -> None:
    """evaluation.json, its plot where a model was measured, and its part of the model card of a run."""
    write_json(output_dir / "evaluation.json", report)
    if report["rows"][0]["num_inference_steps"] is not None:
        plot_quality(report, output_dir / "evaluation.png")
    if (output_dir / RunMetadata.file_name).is_file():
        try:
            write_card(output_dir)
        except UserError as error:  # of another file, which is no reason to lose the report
            warnings.warn(f"the report is written, but not into the model card: {error}", stacklevel=3)
    print(f"Written: {visible(output_dir / 'evaluation.json')}")


def _rows(
    model_name: str, subject: Subject, variants: Sequence[str | None], evaluator: Evaluator
) -> Iterator[tuple[ImagesByNumber, dict[str, Any]]]:
    """(images, what they are) of each row of the report."""
    settings, device = evaluator.settings, evaluator.extract.accelerator.device
    if isinstance(subject, Images):
        yield lambda numbers: subject.part(numbers)[0], {"num_inference_steps": None, "variant": None, "sigmas": None}
    guide = settings.guide and load_consistency(model_name, _variant(settings.guide)).unet
    for variant in variants:
        pipeline = load_consistency(model_name, variant).to(device)  # with tuned levels
        for steps, scale in product(settings.steps, settings.guidance_scales):
            sigmas = [float(sigma) for sigma in pipeline.scheduler.sampling_sigmas(steps)]
            images = evaluator.drawer(pipeline, settings.seed, sigmas, guidance_scale=scale, guide=guide)
            row = {"num_inference_steps": steps, "variant": variant, "sigmas": sigmas}
            yield images, row | ({"guidance_scale": scale} if settings.guidance_scales != [1.0] else {})


def _images_to_measure(path: Path) -> DataSettings | None:
    """Images that are measured as they are, or None where `path` is a model."""
    if path.suffix in IMAGE_FILES:
        return DataSettings(dataset_name=str(path))
    # A run without a model as yet has grids of samples in its folder.
    model = any((path / name).is_file() for name in ("model_index.json", "recipe.yaml"))
    return DataSettings(train_data_dir=str(path)) if path.is_dir() and not model and holds_images(path) else None


def _checked_metrics(
    settings: EvaluationSettings, folder: Path | None, metrics: Sequence[Metric] | None
) -> Sequence[Metric]:
    """The metrics, after a check of the settings, before anything is read; `folder` is the model's, if it is local."""
    check_bounds(settings)
    for name in ("metrics", "steps", "variants", "guidance_scales"):
        values = getattr(settings, name)
        if values is not None and not 0 < len(values) == len(set(values)):
            raise UserError(f"`{name}` needs at least one value, and none twice, got {values or 'none'}.")
    if unknown := [name for name in settings.metrics if name not in (*METRICS, *PAIRED)]:
        raise UserError(f"`metrics` may be {', '.join((*METRICS, *PAIRED))}, got {unknown[0]}.")
    if bool(settings.data_name) == (settings.reference is not None):
        raise UserError("give `dataset_name` or `train_data_dir`, or `reference` with statistics, one of the three.")
    longest = ICTScheduler().config.num_train_timesteps
    if not all(1 <= steps <= longest for steps in settings.steps):
        raise UserError(f"`steps` must lie within 1 and {longest}, got {settings.steps}.")
    if not all(0 < scale < float("inf") for scale in settings.guidance_scales):
        raise UserError(f"`guidance_scales` must be positive numbers, got {settings.guidance_scales}.")
    if settings.guide is not None and settings.guidance_scales == [1.0]:
        raise UserError("`guide` does nothing at a scale of 1: give `guidance_scales`, too, such as 1 1.25 1.5.")
    if settings.tune_sigmas is not None and folder is None:
        raise UserError("`tune_sigmas` writes into the model's scheduler: give the model as a local folder.")
    return [METRICS[name] for name in settings.metrics if name in METRICS] if metrics is None else metrics


def _variants(settings: EvaluationSettings, model_name: str) -> list[str | None]:
    """The averages of the weights to be measured; None is the published one."""
    names = [variant or PUBLISHED for variant in list_variants(model_name)]
    chosen = names if settings.variants is None else settings.variants
    for setting, asked in {"variants": chosen, "guide": [settings.guide] if settings.guide else []}.items():
        if unknown := set(asked) - set(names):
            raise UserError(f"`{setting}` may be {', '.join(names)} for this model, got {', '.join(sorted(unknown))}.")
    return [_variant(name) for name in chosen]


def _variant(name: str) -> str | None:
    """An average of the weights, as diffusers names it."""
    return None if name == PUBLISHED else name


def _tune(steps: int, pipeline: ConsistencyPipeline, evaluator: Evaluator, folder: Path) -> dict[str, Any]:
    """Search noise levels for up to so many steps, write them if they are better, and describe the search.

    It has noise of its own, so that no reported figure is one that the levels were chosen by.
    """
    settings, scheduler, accelerator = evaluator.settings, pipeline.scheduler, evaluator.extract.accelerator
    metric, count = METRICS[settings.tune_metric], settings.tune_samples or settings.num_samples
    search_seed = derive_seed(settings.seed, EVALUATION)
    figures = Figures()

    def figure(levels: list[float], fresh: bool) -> float:
        images = evaluator.drawer(pipeline, settings.seed if fresh else search_seed, levels)
        figures.update(evaluator.figures(images, count, [metric], f"{len(levels)} steps")[0])
        return next(iter(figures.values()))  # a deviation stands behind its figure

    tuned, name = tune(figure, scheduler, steps, metric.higher_is_better), next(iter(figures))
    for n, levels in tuned["old_levels"].items():
        old, new = [float(f"{level:.4g}") for level in levels], tuned["levels"][: len(levels)]
        before, after = (f"{tuned[key][n]:.5g} through" for key in ("before", "after"))
        accelerator.print(f"{n} steps: {name} {before} {old}, {after} {new}")
    if tuned["adopted"] and accelerator.is_main_process:
        better = ICTScheduler.from_config(scheduler.config, intermediate_sigmas=tuned["levels"])
        with staged_folder(folder / "scheduler", SCHEDULER_CONFIG_NAME) as staged:
            better.to_stock().save_pretrained(staged)
    accelerator.wait_for_everyone()
    accelerator.print("Written into the scheduler." if tuned["adopted"] else "No improvement: the old levels stay.")
    return {"metric": name, "samples": count, "search_seed": search_seed, **tuned}


def _describe(evaluator: Evaluator, words: Sequence[str]) -> dict[str, Any]:
    """The facts that a reader needs to repeat or compare the figures."""
    settings, reference, extractor = evaluator.settings, evaluator.reference, evaluator.extract.extractor
    of_metrics = {metric.name: metric.settings(evaluator.count, reference.count) for metric in evaluator.metrics}
    return {
        **{name: reference.description[name] for name in ("dataset", "split", "flipped")},
        "reference": reference.hash,
        "reference_images": reference.count,
        "samples": evaluator.count,
        **{name: getattr(settings, name) for name in ("labels", "seed", "batch_size")},
        **({} if settings.guidance_scales == [1.0] else {"guide": settings.guide}),
        "extractor": extractor.name,
        "extractor_weights": extractor.weights,
        "resize": extractor.resize,
        "settings": {name: chosen for name, chosen in of_metrics.items() if chosen},
        "versions": {"diffusers-ict": __version__, **{name: version(name) for name in ("torch", "diffusers")}},
        "commit": code_commit(),
        "hardware": hardware(evaluator.extract.accelerator),
        "command": shell([*command_words("evaluate"), *map(portable, words)]),
    }
