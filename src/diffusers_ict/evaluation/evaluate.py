"""One evaluation, from reading the real images to renewing the model card."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

from ..data.dataset import Images
from ..data.draw import EVALUATION, derive_seed
from ..data.load import load_images
from ..data.settings import DataSettings
from ..data.sources import holds_images
from ..errors import UserError
from ..files import check_writable, portable, public_name, staged_folder, write_json
from ..hub.card import write_card
from ..hub.metadata import RunMetadata
from ..hub.provenance import code_commit, hardware
from ..processes import make_accelerator
from ..scheduling_ict import ICTScheduler
from ..version import __version__
from .extractors import make_extractor
from .features import Extraction, ImagesByNumber, Reference, add_features, describe_reference, read_reference
from .report import plot_quality
from .samples import Model, drawer, labels_of, list_variants, load_model
from .selection import METRICS, Figures, Metric, check_metric
from .settings import EvaluationSettings
from .tuning import tune

PUBLISHED_WEIGHTS = "published"  # the name of the weights that are no variant
IMAGE_FILES = (".npz", ".parquet", ".arrow")


def evaluate(
    model_name: str, settings: EvaluationSettings, words: Sequence[str] = (), metrics: Sequence[Metric] | None = None
) -> dict[str, Any]:
    """Measure a model, or images of a file or a folder, and write the report.

    Args:
        model_name: folder or Hub id of a consistency pipeline, or a file or folder of images.
        words: the command line, for the report.
        metrics: instead of those that the settings name.

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
    variants = [] if measured else _variants(settings, model_name)
    subject = (
        load_images(measured, accelerator=accelerator)
        if measured
        else load_model(model_name, variants[0], accelerator.device)
    )
    evaluator = _evaluator(settings, subject, metrics, accelerator)

    report = _describe(evaluator, words)
    if settings.tune_sigmas is not None and isinstance(subject, Model) and folder is not None:
        report["tuned"] = _tune(settings.tune_sigmas, subject, evaluator, folder)
    report["rows"] = []
    for images, variant, sigmas in _rows(model_name, subject, variants, evaluator):
        steps = None if sigmas is None else len(sigmas)
        name = "images" if steps is None else f"{variant or PUBLISHED_WEIGHTS}, steps {steps}"
        figures, report["higher_is_better"] = evaluator.figures(images, evaluator.count, metrics, name)
        report["rows"].append({"num_inference_steps": steps, "variant": variant, "sigmas": sigmas, "metrics": figures})
        accelerator.print(f"{name}: " + ", ".join(f"{key} {value:.5g}" for key, value in figures.items()))
    if accelerator.is_main_process:
        _write(output_dir, report)
        print(f"Written: {output_dir / 'evaluation.json'}")
    accelerator.end_training()
    return report


@dataclass(frozen=True)
class Evaluator:
    """Measures images against a reference.

    Attributes:
        count: images of each row of the report; metrics: of each row.
        label_source: data whose classes samples are drawn as frequently as, or None for each class in turn.
    """

    settings: EvaluationSettings
    count: int
    metrics: Sequence[Metric]
    extract: Extraction
    reference: Reference
    label_source: Images | None

    def figures(
        self, images: ImagesByNumber, count: int, metrics: Sequence[Metric], label: str
    ) -> tuple[Figures, list[str]]:
        """(figures of `count` images, names of those of which higher is better), the same on all processes."""
        samples = self.extract(images, count, label, any(metric.needs_features for metric in metrics))
        figures: Figures = {}
        higher: list[str] = []
        if self.reference.features is not None and self.extract.accelerator.is_main_process:
            for metric in metrics:
                settings = metric.settings(count, self.reference.count)
                values = metric.compute(samples, self.reference.features, self.extract.extractor, settings)
                figures |= values
                higher += values if metric.higher_is_better else []
        return tuple(broadcast_object_list([figures, higher]))


def _evaluator(
    settings: EvaluationSettings, subject: Images | Model, metrics: Sequence[Metric], accelerator: Accelerator
) -> Evaluator:
    """Read the real images, or their statistics, after a check that all metrics can be computed.

    Raises:
        UserError: they cannot.
    """
    cache = Path(settings.cache_dir or "~/.cache/diffusers-ict").expanduser()
    check_writable("cache_dir", cache)
    extractor = make_extractor(settings.extractor, settings.extractor_weights, accelerator.device)
    extract = Extraction(extractor, accelerator, settings.batch_size, subject.shape)
    count = len(subject) if isinstance(subject, Images) else settings.num_samples
    wanted = [(metric, count) for metric in metrics]
    if settings.tune_sigmas is not None:
        wanted.append((METRICS[settings.tune_metric], settings.tune_samples or count))
    keep = any(metric.needs_features for metric, _ in wanted)
    by_class = isinstance(subject, Model) and subject.classes is not None and settings.labels == "data"
    if by_class and settings.reference is not None:
        raise UserError("`reference` does not say how frequent classes are: give the data, or `labels` uniform.")
    images = None
    if settings.reference is not None:
        reference = read_reference(Path(settings.reference), extractor, keep)
    else:
        images = load_images(settings, class_conditional=by_class, accelerator=accelerator)
        name, _ = public_name(settings.data_name)
        reference = describe_reference(images, name, settings.dataset_split, settings.flip_reference, extractor)
    if (real := tuple(reference.description["shape"])) != extract.shape:
        (c, h, w), (channels, height, width) = real, extract.shape
        raise UserError(
            f"real images must be like the ones to be measured, {width}x{height} of {channels} channels, and are "
            f"{w}x{h} of {c}; give `resolution`, `center_crop` and `image_mode` as in training."
        )
    for metric, samples in wanted:
        check_metric(metric, min(samples, reference.count), extract.widths, extractor)
    label_source = images if by_class else None
    if isinstance(subject, Model):
        labels_of(subject, label_source, settings.seed)  # refuses other classes before anything is computed
    if images is not None:
        reference = add_features(reference, images, extract, cache, keep)
    return Evaluator(settings, count, metrics, extract, reference, label_source)


def _rows(
    model_name: str, subject: Images | Model, variants: Sequence[str | None], evaluator: Evaluator
) -> Iterator[tuple[ImagesByNumber, str | None, list[float] | None]]:
    """(images, variant, noise levels) of each row of the report."""
    if isinstance(subject, Images):
        yield lambda numbers: subject.part(numbers)[0], None, None
    for variant in variants:
        model = load_model(model_name, variant, evaluator.extract.accelerator.device)  # with levels just written
        for steps in evaluator.settings.steps:
            sigmas = [float(sigma) for sigma in model.pipeline.scheduler.sampling_sigmas(steps)]
            yield drawer(model, evaluator.label_source, evaluator.settings.seed, sigmas), variant, sigmas


def _write(output_dir: Path, report: dict[str, Any]) -> None:
    """Write evaluation.json and evaluation.png, and renew the card of a run."""
    write_json(output_dir / "evaluation.json", report)
    if any(row["num_inference_steps"] for row in report["rows"]):
        plot_quality(report, output_dir / "evaluation.png")
    if (output_dir / RunMetadata.file_name).is_file():
        write_card(output_dir)


def _images_to_measure(path: Path) -> DataSettings | None:
    """Images that are measured as they are, or None where `path` is a model.

    A run that has published no model yet has grids of samples in its folder, which are no images to be measured.
    """
    if path.suffix in IMAGE_FILES:
        return DataSettings(dataset_name=str(path))
    model = any((path / name).is_file() for name in ("model_index.json", "recipe.yaml"))
    return DataSettings(train_data_dir=str(path)) if path.is_dir() and not model and holds_images(path) else None


def _checked_metrics(
    settings: EvaluationSettings, folder: Path | None, metrics: Sequence[Metric] | None
) -> Sequence[Metric]:
    """The metrics, after a check of the settings, before anything is read; `folder` is the model's, if it is local."""
    for name in ("metrics", "steps", "variants"):
        if getattr(settings, name) == []:
            raise UserError(f"`{name}` needs at least one value, got none.")
    if unknown := [name for name in settings.metrics if name not in METRICS]:
        raise UserError(f"`metrics` may be {', '.join(METRICS)}, got {unknown[0]}.")
    if bool(settings.data_name) == (settings.reference is not None):
        raise UserError("give `dataset_name` or `train_data_dir`, or `reference` with statistics, one of the three.")
    longest = ICTScheduler().config.num_train_timesteps
    if not all(1 <= steps <= longest for steps in settings.steps):
        raise UserError(f"`steps` must lie within 1 and {longest}, got {settings.steps}.")
    if settings.tune_sigmas is not None and folder is None:
        raise UserError("`tune_sigmas` writes into the model's scheduler: give the model as a local folder.")
    return [METRICS[name] for name in settings.metrics] if metrics is None else metrics


def _variants(settings: EvaluationSettings, model_name: str) -> list[str | None]:
    """The averages of the weights to be measured; None stands for the published one."""
    names = [PUBLISHED_WEIGHTS, *list_variants(model_name)]
    chosen = names if settings.variants is None else settings.variants
    if unknown := set(chosen) - set(names):
        raise UserError(f"`variants` may be {', '.join(names)} for this model, got {', '.join(sorted(unknown))}.")
    return [None if name == PUBLISHED_WEIGHTS else name for name in chosen]


def _tune(steps: int, model: Model, evaluator: Evaluator, folder: Path) -> dict[str, Any]:
    """Search noise levels for up to so many steps, write them if they are better, and describe the search.

    The search has noise of its own. The old levels and the new are compared on the noise of the report's rows, so that
    no reported figure is one that the levels were chosen by.
    """
    settings, scheduler, accelerator = evaluator.settings, model.pipeline.scheduler, evaluator.extract.accelerator
    metric, count = METRICS[settings.tune_metric], settings.tune_samples or settings.num_samples
    search_seed = derive_seed(settings.seed, EVALUATION)
    name = ""

    def figure(levels: list[float], fresh: bool) -> float:
        nonlocal name
        images = drawer(model, evaluator.label_source, settings.seed if fresh else search_seed, levels)
        figures, _ = evaluator.figures(images, count, [metric], f"{len(levels)} steps")
        name = next(iter(figures))  # a deviation stands behind its figure
        return figures[name]

    tuned = tune(figure, scheduler, steps, metric.higher_is_better)
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
        "extractor": extractor.name,
        "extractor_weights": extractor.weights,
        "resize": extractor.resize,
        "settings": {name: chosen for name, chosen in of_metrics.items() if chosen},
        "versions": {"diffusers-ict": __version__, **{name: version(name) for name in ("torch", "diffusers")}},
        "commit": code_commit(),
        "hardware": hardware(evaluator.extract.accelerator),
        "command": shlex.join(["python", "train_scripts/evaluate.py", *map(portable, words)]),
    }
