"""The samples of an evaluation: drawn by a pipeline, or read from a file. Each is a function of its index."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files
from torch import Tensor

from ..data.dataset import Images
from ..data.draw import EVALUATION, derive_seed
from ..errors import UserError, first_line
from ..hub.provenance import weights_hash
from ..pipeline_consistency import ConsistencyPipeline, load_consistency


@dataclass(frozen=True)
class Model:
    """A pipeline to be sampled, with one of its averages of the weights.

    Attributes:
        variant: or None for the published weights; weights: SHA-256 of them.
    """

    pipeline: ConsistencyPipeline
    variant: str | None
    weights: str

    @property
    def classes(self) -> int | None:
        """How many, or None for an unconditional model."""
        return self.pipeline.unet.config.num_class_embeds

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it draws."""
        config = self.pipeline.unet.config
        size = config.sample_size
        return (config.out_channels, *(size if isinstance(size, (list, tuple)) else (size, size)))


def load_model(repository: str, variant: str | None, device: torch.device) -> Model:
    """A consistency pipeline by path or Hub id.

    Raises:
        UserError: there is none, or a damaged one.
    """
    pipeline = load_consistency(repository, variant).to(device)
    return Model(pipeline, variant, weights_hash(pipeline.unet))


def list_variants(repository: str) -> list[str]:
    """The variants of the weights that a repository holds."""
    folder = Path(repository)
    names = [p.name for p in (folder / "unet").glob("*")] if folder.is_dir() else _published(repository)
    parts = [name.split(".") for name in names if name.endswith(".safetensors")]
    return sorted({part[1] for part in parts if len(part) == 3})


def _published(repository: str) -> list[str]:
    try:
        return [name.removeprefix("unet/") for name in list_repo_files(repository) if name.startswith("unet/")]
    except Exception as error:  # the Hub's kinds, and those of its transport
        raise UserError(f"the files of {repository} cannot be listed: {first_line(error)}") from error


def labels_of(model: Model, images: Images | None, seed: int) -> Callable[[int, int], Tensor | None]:
    """Labels of samples (first, count): as frequent as in `images`, or each class in turn where that is None.

    Raises:
        UserError: the data has other classes than the model.
    """
    classes = model.classes
    if classes is None:
        return lambda start, size: None
    if images is None:
        return lambda start, size: torch.arange(start, start + size) % classes
    if images.num_classes != classes or images.labels is None:
        raise UserError(
            f"the model has {classes} classes and the data has {images.num_classes or 'none'}; give "
            "`label_column`, or draw every class equally often with `labels` uniform."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(seed, EVALUATION)))
    shuffled = images.labels[order]
    return lambda start, size: shuffled[torch.arange(start, start + size) % len(shuffled)]


def drawer(
    model: Model, labels: Callable[[int, int], Tensor | None], seed: int, levels: list[float]
) -> Callable[[int, int], Tensor]:
    """A function that draws samples (first, count) through the noise levels `levels`: uint8 [n, C, H, W].

    Every sample has noise of its own, which depends on the seed and its index alone. So step counts and variants are
    compared on the same noise, and figures depend neither on the batch size nor on the number of processes.
    """
    pipeline = model.pipeline

    def draw(start: int, size: int) -> Tensor:
        seeds = [derive_seed(seed, EVALUATION, index) for index in range(start, start + size)]
        generators = [torch.Generator(pipeline.device).manual_seed(own) for own in seeds]
        (drawn,) = pipeline(
            size, labels(start, size), sigmas=levels, generator=generators, output_type="pt", return_dict=False
        )
        if not drawn.isfinite().all():
            raise UserError(
                f"the model draws images that are not numbers at noise levels {levels}; its weights are broken."
            )
        return (drawn * 255).round().to(torch.uint8)  # as PIL images are made

    return draw


def describe_model(model: Model, seed: int, labels: str) -> dict[str, Any]:
    """Everything but the noise levels that determines the samples of a model."""
    config = model.pipeline.scheduler.config
    constants = {key: config[key] for key in ("sigma_min", "sigma_max", "sigma_data", "s_noise", "clip_denoised")}
    return {"weights": model.weights, **constants, "seed": seed, "labels": labels}


def describe_images(images: Images) -> dict[str, Any]:
    """The same for images of a file."""
    return {"pixels": hashlib.sha256(images.pixels.numpy().data).hexdigest(), "shape": list(images.pixels.shape)}
