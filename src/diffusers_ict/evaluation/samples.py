"""The samples of an evaluation, drawn by a pipeline. Each is a function of its number."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..array_pictures import Shades
from ..class_names import drawn_classes
from ..data.dataset import Images
from ..data.draw import EVALUATION, derive_seed
from ..data.transform import PictureFormat, to_unit
from ..errors import UserError, first_line
from ..image_grid import as_pictures, classes_in_turn, labelled_blocks
from ..loading import variants_of
from ..pipeline_consistency import ConsistencyPipeline
from ..transparency import MODES

AT_ONCE = 250  # samples of one call of the network


def image_shape(pipeline: ConsistencyPipeline) -> tuple[int, int, int]:
    """(C, H, W) of the images that a pipeline draws, or a UserError where its network has no size."""
    config = pipeline.unet.config
    size = config.sample_size
    if size is None:
        raise UserError("the UNet's config must have a sample_size, the side of the images that it draws.")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    smaller = pipeline.vae_scale_factor
    return pipeline.image_channels, height * smaller, width * smaller


def list_variants(repository: str) -> list[str | None]:
    """The variants of the weights that a folder or a Hub repository holds, None being the published ones.

    Raises:
        UserError: the Hub does not answer, or has no such repository.
    """
    try:
        return variants_of(repository) or [None]
    except Exception as error:  # the Hub's classes, and those of its transport
        raise UserError(f"the files of {repository} cannot be listed: {first_line(error)}") from error


def labels_of(pipeline: ConsistencyPipeline, images: Images | None, seed: int) -> Callable[[Tensor], Tensor | None]:
    """Labels of samples by their numbers: as frequent as in `images`, or each class in turn where that is None.

    Classes without images in training have no turn.

    Raises:
        UserError: the data has other classes than the model.
    """
    classes = pipeline.num_classes
    if classes is None:
        return lambda numbers: None
    if images is None:
        known = torch.tensor(drawn_classes(pipeline.id2label, classes))
        return lambda numbers: known[numbers % len(known)]
    if images.num_classes != classes or images.labels is None:
        raise UserError(
            f"the model has {classes} classes and the data has {images.num_classes or 'none'}; give "
            "`label_column`, or draw every class equally often with `labels` uniform."
        )
    known, row = images.labels.cpu(), row_of(images, seed)
    return lambda numbers: known[row(numbers)]


def row_of(images: Images, seed: int) -> Callable[[Tensor], Tensor]:
    """Rows of the data by the numbers of samples: all in random order, again and again."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(seed, EVALUATION)))
    return lambda numbers: order[numbers % len(order)]


def conditions_of(pipeline: ConsistencyPipeline, images: Images, seed: int) -> Callable[[Tensor], Tensor] | None:
    """What a model of pairs is given for samples, by their numbers: uint8 [n, C', H, W]; None for another model.

    Raises:
        UserError: the data have no conditions, or others than the model's, or the model takes none.
    """
    needed, there = pipeline.condition_channels, images.condition_channels
    if needed != there:
        raise UserError(
            f"the model is given images of {needed} channels, and the conditions of the data have {there or 'none'}: "
            "set `conditioning_image_column` and `conditioning_image_mode` as in training."
        )
    if images.condition is None:
        return None
    rows, row = images.condition.rows, row_of(images, seed)
    return lambda numbers: rows[row(numbers)]


def drawer(
    pipeline: ConsistencyPipeline,
    images: Images | None,
    seed: int,
    levels: list[float],
    given: Callable[[Tensor], Tensor] | None = None,
    guidance: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Tensor], Tensor]:
    """A function that draws the samples of some numbers [n] through the noise levels `levels`: uint8 [n, C, H, W].

    Samples of a model whose data are no pictures are float32, as its network sees the data.

    The noise of a sample depends on the seed and its number alone, its label is that of `labels_of`. So step counts and
    variants are compared on the same noise, whatever the batch size and the number of processes.

    Args:
        images: the labels are those of `labels_of` for them.
        given: of a model of pairs, the conditions of some numbers.
        guidance: arguments of the pipeline.
    """
    labels = labels_of(pipeline, images, seed)

    def draw(numbers: Tensor) -> Tensor:
        seeds = [derive_seed(seed, EVALUATION, number) for number in numbers.tolist()]
        generators = [torch.Generator(pipeline.device).manual_seed(seed) for seed in seeds]
        kind = "latent" if pipeline.normalization else "pt"
        options: dict[str, Any] = {"sigmas": levels, "generator": generators, "output_type": kind, **guidance}
        if given is not None:
            options["image"] = given(numbers)
        (drawn,) = pipeline(len(seeds), labels(numbers), **options, return_dict=False)
        if not drawn.isfinite().all():
            raise UserError(
                f"the model draws images that are not numbers at noise levels {levels}; its weights are broken."
            )
        return drawn if pipeline.normalization else (drawn * 255).round().to(torch.uint8)  # as PIL images are made

    return draw


def read_given(pipeline: ConsistencyPipeline, files: Sequence[Path]) -> Tensor | None:
    """Files of pictures as a model of pairs is given them, uint8 [n, C', H, W]; None for another model.

    Raises:
        UserError: a file that cannot be read, files for another model, none for this one, or one whose images do not
            have 1, 3 or 4 channels.
    """
    channels, (_, height, width) = pipeline.condition_channels, image_shape(pipeline)
    if bool(files) != bool(channels):
        needed = f"files of pictures of {channels} channels, because" if channels else "left out, because not"
        raise UserError(f"`image` must be {needed} this model draws for given ones, got {len(files)} files.")
    if not channels:
        return None
    if channels not in MODES:
        raise UserError(
            f"pictures have 1, 3 or 4 channels, and what this model is given has {channels}: call ConsistencyPipeline "
            "with arrays."
        )
    form = PictureFormat(height, mode=MODES[channels], width=width)
    read = [form.convert({"bytes": None, "path": str(file)}, number).pixels for number, file in enumerate(files)]
    return torch.stack([torch.from_numpy(pixels.copy()) for pixels in read])


def draw_in_turn(
    pipeline: ConsistencyPipeline,
    count: int,
    steps: int,
    seed: int,
    given: Tensor | None = None,
    guidance: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """So many samples in `steps` steps, each class in turn, as `drawer` has them.

    Args:
        given: what a model of pairs is given, uint8 [n, C', H, W], in turn.
        guidance: arguments of the pipeline.
    """
    levels = pipeline.scheduler.sampling_sigmas(steps).tolist()
    parts = torch.arange(count).split(AT_ONCE)
    conditions = None if given is None else lambda numbers: given[numbers % len(given)]
    draw = drawer(pipeline, None, seed, levels, conditions, guidance)
    return torch.cat([draw(numbers) for numbers in parts]).cpu()


def as_arrays(pipeline: ConsistencyPipeline, drawn: Tensor) -> np.ndarray:
    """Samples of `drawer` as [n, H, W, C]: pictures in uint8, others in float32 and in the units of the data."""
    values = drawn if pipeline.normalization is None else pipeline.normalization.undo(drawn)
    return values.permute(0, 2, 3, 1).contiguous().numpy()


def sample_sheet(pipeline: ConsistencyPipeline, drawn: Tensor) -> Image.Image:
    """A picture of samples of `draw_in_turn`: columns of one class each, with its name."""
    numbers = drawn_classes(pipeline.id2label, pipeline.num_classes or 0)
    names = [(pipeline.id2label or {}).get(number, str(number)) for number in numbers]
    if pipeline.normalization is None:
        return classes_in_turn({"": as_pictures(to_unit(drawn, None, "cpu"))}, names)
    values = pipeline.normalization.undo(drawn)
    shades = Shades.of(values)
    return shades.with_bar(classes_in_turn(shades.rows({"": values}), names))


def given_sheet(given: Tensor, drawn: Tensor) -> Image.Image:
    """A picture of a model of pairs: a column for each of `given`, uint8 [n, C', H, W], with its samples below."""
    blocks = {name: as_pictures(to_unit(each, None, "cpu")) for name, each in {"given": given, "drawn": drawn}.items()}
    return labelled_blocks(blocks, len(given))
