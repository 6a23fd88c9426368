"""What measures images of a model, or of a file, against real ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..data.dataset import Images
from ..data.load import load_images
from ..errors import LabelsError, UserError
from ..files import check_writable, public_name
from ..normalization import Normalization
from ..pipeline_consistency import ConsistencyPipeline
from .extractors import WIDTHS, check_extractor, make_extractor, no_extractor
from .features import Extraction, ImagesByNumber, Reference, exact_device, measure_reference, read_reference
from .paired import PAIRED, PairedMetric, closeness, paired_metrics
from .samples import conditions_of, drawer, image_shape, labels_of, row_of
from .selection import METRICS, Figures, Metric
from .settings import EvaluationSettings

Subject = Images | ConsistencyPipeline  # what is measured


@dataclass(frozen=True)
class Evaluator:
    """Measures images against a reference."""

    settings: EvaluationSettings
    count: int  # images of each row of the report
    metrics: Sequence[Metric]  # of each row
    extract: Extraction
    reference: Reference
    label_source: Images | None  # data whose classes samples are drawn as frequently as, or None for each class in turn
    paired: Sequence[PairedMetric] = ()  # of each row, between samples and the images of the data
    pairs: Images | None = None  # data whose conditions samples are drawn for

    def drawer(self, pipeline: ConsistencyPipeline, seed: int, sigmas: list[float], **guidance: Any) -> ImagesByNumber:
        """What draws the samples of a row, for the conditions of the data where the model is given some.

        Args:
            guidance: arguments of the pipeline.
        """
        given = None if self.pairs is None else conditions_of(pipeline, self.pairs, seed)
        return drawer(pipeline, self.label_source, seed, sigmas, given, guidance)

    def closeness(self, images: ImagesByNumber, label: str) -> Figures:
        """Figures of the paired metrics. Samples are drawn once more: each is a function of its number."""
        if self.pairs is None or not self.paired:
            return {}
        data, row, accelerator = self.pairs, row_of(self.pairs, self.settings.seed), self.extract.accelerator

        def targets(numbers: Tensor) -> Tensor:
            return data.part(row(numbers))[0]

        return closeness(images, targets, self.count, self.paired, accelerator, self.settings.batch_size, label)

    def figures(
        self, images: ImagesByNumber, count: int, metrics: Sequence[Metric], label: str
    ) -> tuple[Figures, list[str]]:
        """(figures of `count` images, names of those of which higher is better), the same on all processes."""
        samples = self.extract(images, count, label, any(metric.needs_features for metric in metrics))
        figures, higher = Figures(), list[str]()
        if self.reference.features is not None and self.extract.accelerator.is_main_process:
            device = exact_device(self.extract.accelerator.device)
            drawn, real = samples.to(device), self.reference.features.to(device)
            for metric in metrics:
                chosen = metric.settings(count, self.reference.count)
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                    values = metric.compute(drawn, real, self.extract.extractor, chosen)
                figures |= values
                higher += values if metric.higher_is_better else []
        figures, higher = broadcast_object_list([figures, higher])
        if wrong := [f"{name} {figure}" for name, figure in figures.items() if not math.isfinite(figure)]:
            raise UserError(f"the features of {self.extract.extractor.name} are too large to compute {wrong[0]}.")
        return figures, higher


def make_evaluator(
    settings: EvaluationSettings, subject: Subject, metrics: Sequence[Metric], accelerator: Accelerator
) -> Evaluator:
    """Read the real images, or their statistics, after a check that all metrics can be computed, or a UserError."""
    cache = Path(settings.cache_dir or "~/.cache/diffusers-ict").expanduser()
    check_writable("cache_dir", cache)
    normalization = getattr(subject, "normalization", None)
    if isinstance(subject, Images):
        count, shape, classes = len(subject), subject.shape, None
    else:
        count, shape, classes = settings.num_samples, image_shape(subject), subject.num_classes
    named = settings.extractor or ("inception" if normalization is None else "pixels")
    wanted = [(metric, count) for metric in metrics]
    if settings.tune_sigmas is not None:
        wanted.append((METRICS[settings.tune_metric], settings.tune_samples or count))
    if wanted:
        check_extractor(named, normalization is None)
    keep = any(metric.needs_features for metric, _ in wanted)
    by_class = classes is not None and settings.labels == "data"
    given = subject.condition_channels if isinstance(subject, ConsistencyPipeline) else 0
    paired = _paired(settings, given, shape, accelerator)
    if by_class and settings.reference is not None:
        raise UserError("`reference` does not say how frequent classes are: give the data, or `labels` uniform.")

    def check_counts(real: int, widths: Sequence[int], extractor: str) -> None:
        for metric, samples in wanted:
            metric.check(min(samples, real), widths, extractor)

    images, real = None, count
    if settings.reference is None:
        images = _real_images(settings, by_class, accelerator, normalization)
        _check_alike(images.shape, shape)
        real = len(images) * (1 + settings.flip_reference)
    if wanted and (widths := WIDTHS.get((named, settings.extractor_weights))):
        check_counts(real, widths, named)  # before the weights are downloaded
    extractor = (
        make_extractor(named, settings.extractor_weights, accelerator.device, normalization is None)
        if wanted
        else no_extractor(accelerator.device)
    )
    extract = Extraction(extractor, accelerator, settings.batch_size, shape, normalization is None)
    if settings.reference is not None:
        reference = read_reference(Path(settings.reference), extractor, keep)
        _check_alike(reference.description["shape"], shape)
        real = reference.count
    check_counts(real, extract.widths, extractor.name)
    label_source = images if by_class else None
    pairs = images if given else None
    if isinstance(subject, ConsistencyPipeline):
        labels_of(subject, label_source, settings.seed)  # refuses other classes before anything is computed
        if pairs is not None:
            conditions_of(subject, pairs, settings.seed)  # and other conditions
    if images is not None:
        name, on_hub = public_name(settings.data_name)
        split = settings.dataset_split if on_hub or settings.dataset_split != "train" else None  # a folder has none
        facts = {"dataset": name, "split": split, "flipped": settings.flip_reference}
        reference = measure_reference(images, facts, extract, cache, keep)
    return Evaluator(settings, count, metrics, extract, reference, label_source, paired, pairs)


def _paired(
    settings: EvaluationSettings, given: int, shape: tuple[int, int, int], accelerator: Accelerator
) -> list[PairedMetric]:
    """The paired metrics, after a check of what a model that is given images of `given` channels, or none, needs."""
    names = [name for name in settings.metrics if name in PAIRED]
    if names and not given:
        raise UserError(
            f"the metric {names[0]} compares images with those that belong to their conditions, which a model of pairs "
            "is given: remove it from `metrics`."
        )
    if not given and settings.conditioning_image_column is not None:
        raise UserError("`conditioning_image_column` means nothing for a model that is given no images: leave it out.")
    if given and settings.reference is not None:
        raise UserError("`reference` holds no conditions, which this model draws for: give the data.")
    if given and settings.labels != "data":
        raise UserError("`labels` uniform means nothing for a model of pairs, whose conditions have classes: leave it.")
    return paired_metrics(names, shape, settings.lpips_weights, accelerator.device)


def _check_alike(real: Sequence[int], shape: Sequence[int]) -> None:
    if tuple(real) != tuple(shape):
        (c, h, w), (channels, height, width) = real, shape
        raise UserError(
            f"real images must be like the ones to be measured, {width}x{height} of {channels} channels, and are "
            f"{w}x{h} of {c}; give `resolution`, `center_crop` and `image_mode` as in training."
        )


def _real_images(
    settings: EvaluationSettings, by_class: bool, accelerator: Accelerator, normalization: Normalization | None
) -> Images:
    if settings.normalize and normalization is None:
        raise UserError("`normalize` is for models that were trained with it: leave it out for pictures.")
    try:
        return load_images(settings, class_conditional=by_class, accelerator=accelerator, normalization=normalization)
    except LabelsError as error:
        raise UserError(f"{str(error)[:-1]}; or draw every class equally often: `labels` uniform.") from error
