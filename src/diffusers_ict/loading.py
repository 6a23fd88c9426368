"""Consistency models loaded by path or Hub id, with a sentence where they cannot be."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DiffusionPipeline,
    LDMPipeline,
)
from huggingface_hub import list_repo_files

from .autoencoders import KINDS, Autoencoder
from .errors import UserError, foreign_line
from .pipeline_consistency import ConsistencyPipeline

D = TypeVar("D", bound=DiffusionPipeline)
VAE_FOLDERS = (None, "vae", "vqvae")  # of an autoencoder by itself, of most pipelines, and of LDMPipeline
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors and its shorter forms; of groups, the variant
WEIGHTS = re.compile(r"unet/[^/.]+(?:\.([^/.]+?))?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)")


def variants_of(repository: str) -> list[str | None]:
    """The variants of its UNet's weights that a repository holds; None, for those that are no variant, comes first.

    Raises:
        Exception: of the Hub's client, which raises many kinds, where a repository is there and cannot be listed.
    """
    folder = Path(repository)
    names = (f"unet/{path.name}" for path in folder.glob("unet/*")) if folder.is_dir() else list_repo_files(repository)
    found = {match[1] for name in names if (match := WEIGHTS.fullmatch(name))}
    return sorted(found, key=lambda variant: (variant is not None, variant))


def _load(kind: type[D], repository: str, variant: str | None = None) -> D:
    """A pipeline with float32 weights; where a repository has variants only, such as fp16, with the first of them."""
    local = Path(repository).is_dir()
    if not local and not HUB_ID.fullmatch(repository):
        raise FileNotFoundError("there is no such folder, and an id on the Hub is user/name.")
    if variant is None and local:
        variant = next(iter(variants_of(repository)), None)
    try:
        return kind.from_pretrained(repository, variant=variant)
    except Exception:
        if local or variant is not None:
            raise
        with suppress(Exception):  # the first error tells more than that of a Hub that does not answer
            variant = next(iter(variants_of(repository)), None)
        if variant is None:
            raise
    return kind.from_pretrained(repository, variant=variant)


def load_vae(name: str) -> Autoencoder:
    """An autoencoder in float32, by path or Hub id: its own folder, or that of a pipeline which holds one.

    Raises:
        UserError: there is none, it is another kind of model, or its files cannot be read.
    """
    if not Path(name).is_dir() and not HUB_ID.fullmatch(name):
        raise UserError(
            f"`pretrained_vae_name_or_path` {name}: there is no such folder, and an id on the Hub is user/name."
        )
    first: Exception | None = None
    for subfolder in VAE_FOLDERS:
        try:
            config = AutoencoderKL.load_config(name, subfolder=subfolder)
        except Exception as error:  # the Hub's classes, and those of its transport
            first = first or error
            continue
        if (kind := config.get("_class_name")) not in KINDS:
            raise UserError(
                f"`pretrained_vae_name_or_path` must be an {' or '.join(KINDS)}, and {name} is a {kind or 'model'} of "
                "another kind."
            )
        try:
            return KINDS[kind].from_pretrained(name, subfolder=subfolder, use_safetensors=True).float()
        except Exception as error:  # damaged files raise what they like
            raise UserError(f"the autoencoder {name} cannot be loaded: {foreign_line(error)}") from error
    assert first is not None
    raise UserError(f"no autoencoder could be loaded from {name}: {foreign_line(first)}") from first


def load_pipeline(repository: str) -> DiffusionPipeline:
    """A repository, by path or Hub id, as stock diffusers loads it, or a UserError."""
    try:
        return _load(DiffusionPipeline, repository)
    except Exception as error:  # damaged files raise what they like
        raise UserError(f"stock diffusers cannot load {repository}: {foreign_line(error)}") from error


def load_stock(repository: str) -> ConsistencyModelPipeline | LDMPipeline:
    """A consistency repository, by path or Hub id, as stock diffusers loads it; one of latents is an LDMPipeline.

    Raises:
        UserError: nothing to be loaded, or another kind of pipeline.
    """
    stock = load_pipeline(repository)
    latents = isinstance(stock, LDMPipeline) and isinstance(stock.scheduler, CMStochasticIterativeScheduler)
    if not (latents or isinstance(stock, ConsistencyModelPipeline)):
        raise UserError(f"{repository} must hold a ConsistencyModelPipeline, and holds a {type(stock).__name__}.")
    return stock


def load_consistency(repository: str, variant: str | None = None) -> ConsistencyPipeline:
    """A consistency repository, by path or Hub id, as this package loads it, without a progress bar, or a UserError."""
    try:
        pipeline = _load(ConsistencyPipeline, repository, variant)
    except Exception as error:  # damaged files raise what they like
        reason, known = foreign_line(error), [variant]
        with suppress(Exception):  # a Hub that does not answer says less than the error
            known = variants_of(repository) if variant is not None else known
        if variant not in known:
            allowed = ", ".join(filter(None, known)) or "left out, as there is none"
            reason = f"`variant` may be {allowed}, got {variant}."
        raise UserError(f"no consistency pipeline could be loaded from {repository}: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
