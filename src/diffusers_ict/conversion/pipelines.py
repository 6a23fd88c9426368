"""From a file or a repository of any known layout to a ConsistencyPipeline."""

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import UserError, first_line
from ..formulas.preconditioning import DIFFUSION_SIGMA_DATA
from ..formulas.time_embedding import fast_columns
from ..hub.fetch import fetch_file
from ..hub.metadata import ConversionMetadata
from ..pipeline_consistency import ConsistencyPipeline, load_pipeline
from ..scheduling_ict import ICTScheduler
from . import act_release, diffusion, openai_layout, unet_shape
from .published import Published, is_edm, published
from .tensors import checked, shown
from .time_refit import NETWORK_LEVELS, Refit, refit_time_embedding

SUFFIXES = (".pt", ".pth", ".ckpt")
LAYOUTS: tuple[Any, ...] = (openai_layout, act_release)  # modules with recognises(checkpoint) and read(checkpoint)
ARCHIVE = b"PK\x03\x04"  # first bytes of what PyTorch has written since 1.6


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        pipeline: ready to be sampled and saved; origin: the kind of source; notes: for its user.
        refit: how exact a time embedding is that had to be refitted, or None.
        prediction: of a diffusion model, what it predicted; None for a consistency model.
    """

    pipeline: ConsistencyPipeline
    origin: str
    notes: tuple[str, ...] = ()
    refit: Refit | None = None
    prediction: str | None = None

    @property
    def needs_alignment(self) -> bool:
        """Whether it is a diffusion model of which some steps of denoising must make a consistency model first."""
        return self.prediction not in (None, *diffusion.ALIGNED)


def convert(
    source: str,
    *,
    resolution: int | None = None,
    attention_head_dim: int | None = None,
    intermediate_sigmas: list[float] | None = None,
) -> Converted:
    """Convert a consistency model, or a diffusion model to begin with, into a stock consistency pipeline.

    Args:
        source: a .pt file of openai/consistency_models, a .ckpt file of the ACT release, or a folder or Hub id of a
            stock consistency pipeline, or of a pipeline with a UNet2DModel and a DDPM, DDIM or PNDM scheduler. Files
            are read without running code that they may hold.
        resolution: image side in pixels, for files of other networks than the released ones.
        attention_head_dim: channels of an attention head, for files of other networks than the released ones.
        intermediate_sigmas: noise levels between sampling steps; by default those of the source, which for a file is
            the published level of a network of openai/consistency_models that its name tells, such as
            ct_imagenet64.pt, and otherwise the middle of the stock grid.

    Raises:
        UserError: the source cannot be converted; says why.
    """
    if Path(source).suffix in SUFFIXES:
        return _from_file(Path(source), resolution, attention_head_dim, intermediate_sigmas)
    return _from_repository(source, intermediate_sigmas)


def _from_repository(source: str, intermediate_sigmas: list[float] | None) -> Converted:
    if not source.isprintable():
        raise UserError(f"{shown(source)} cannot be the name of a repository: not all of its characters are printable.")
    stock = _load(source)
    checked(stock.unet.state_dict())
    # diffusers keeps the place it read from in the config; it must not travel on.
    stock.unet.register_to_config(_name_or_path="")
    if isinstance(stock, ConsistencyModelPipeline):
        origin, notes, prediction = "a stock consistency pipeline", [], _prediction(source)
        scheduler = ConsistencyPipeline(stock.unet, stock.scheduler).scheduler
    else:
        origin, prediction = "a diffusion model", stock.scheduler.config.get("prediction_type", "epsilon")
        notes = diffusion.to_consistency(stock.unet, stock.scheduler.config)
        scheduler = ICTScheduler(sigma_data=DIFFUSION_SIGMA_DATA)
    if intermediate_sigmas is not None:
        scheduler = _scheduler({**scheduler.config, "intermediate_sigmas": intermediate_sigmas})
    return Converted(ConsistencyPipeline(stock.unet, scheduler), origin, tuple(notes), prediction=prediction)


def _prediction(source: str) -> str | None:
    """What a repository says that it was before it was converted, if it is a diffusion model and was not trained."""
    try:
        file = fetch_file(source, ConversionMetadata.file_name)
    except (UserError, HfHubHTTPError, OfflineModeIsEnabled):  # the pipeline came from the cache
        return None
    return None if file is None else ConversionMetadata.read(file.parent).prediction


def _load(source: str) -> DiffusionPipeline:
    """The pipeline of a UNet2DModel with a scheduler that says what it was trained for.

    Raises:
        UserError: there is none, or its scheduler is of another kind.
    """
    if os.path.isfile(f"{source}/config.json") and not os.path.isfile(f"{source}/model_index.json"):
        raise UserError(
            f"{shown(source)} is a network without a scheduler, which says what it was trained for: save both as one "
            "pipeline, as DDPMPipeline(unet, scheduler) does."
        )
    pipeline = load_pipeline(source)
    unet, scheduler = (getattr(pipeline, name, None) for name in ("unet", "scheduler"))
    if not isinstance(unet, UNet2DModel):
        raise UserError(f"{shown(source)} must hold a UNet2DModel, and holds a {type(pipeline).__name__}.")
    if others := sorted(pipeline.components.keys() - {"unet", "scheduler"}):
        raise UserError(
            f"{shown(source)} must draw pixels with a UNet alone, and it also holds {', '.join(others)}: its network "
            "knows latents, not images."
        )
    kind = type(scheduler).__name__
    if not isinstance(pipeline, ConsistencyModelPipeline) and kind not in diffusion.SCHEDULERS:
        raise UserError(
            f"{shown(source)} must be a consistency model, or a diffusion model with one of "
            f"{', '.join(diffusion.SCHEDULERS)}, and it has {kind}."
        )
    try:
        fast_columns(unet)
    except ValueError as error:
        raise UserError(f"{shown(source)} cannot be converted: {error}") from error
    return pipeline


def _from_file(path: Path, resolution: int | None, head_dim: int | None, sigmas: list[float] | None) -> Converted:
    checkpoint, name = _read(path), shown(path.name)
    layout = next((layout for layout in LAYOUTS if layout.recognises(checkpoint)), None)
    if layout is None:
        first = ", ".join(shown(key) for key in list(checkpoint)[:3]) or "none"
        raise UserError(
            f"{name} has neither the layout of openai/consistency_models (time_embed, input_blocks) nor that of "
            f"the ACT release ({act_release.PREFIX}*): its first entries are {first}."
        )
    network = layout.read(checkpoint)
    config = _completed(network, name, resolution, head_dim)
    found = published(path.name) if layout is openai_layout else None
    scheduler, notes = _levels(found, sigmas)
    unet = unet_shape.build(config, network.state)
    refit = refit_time_embedding(unet, _sampling_levels(scheduler)) if layout is act_release else None
    if refit:
        notes.append(_refit_note(refit))
    prediction = diffusion.EDM if layout is openai_layout and is_edm(path.name) else None
    if prediction is not None:
        notes = diffusion.edm_to_consistency(unet)
    return Converted(ConsistencyPipeline(unet, scheduler), network.origin, (*network.notes, *notes), refit, prediction)


def _completed(network: unet_shape.Network, name: str, resolution: int | None, head_dim: int | None) -> dict[str, Any]:
    """The network's configuration with what its weights do not tell.

    Raises:
        UserError: something is missing, or does not suit the network.
    """
    given = {"sample_size": resolution, "attention_head_dim": head_dim}
    config = {**network.config, **{key: value for key, value in given.items() if value is not None}}
    needed = {
        "sample_size": "`resolution`, the side of its images in pixels",
        "attention_head_dim": "`attention_head_dim`, the channels of one attention head (num_head_channels of its "
        "training, or the width of a level with attention divided by its num_heads)",
    }
    if missing := [text for key, text in needed.items() if key not in config]:
        raise UserError(
            f"{name} is none of the released networks, and its weights do not tell everything: give "
            f"{' and '.join(missing)}."
        )
    unet_shape.check(network.stages, config)
    return config


def _levels(found: Published | None, sigmas: list[float] | None) -> tuple[ICTScheduler, list[str]]:
    """The scheduler of a file's network, and what to say of its levels. `sigmas`: those the user wants, or None."""
    if found is None:
        scheduler = _scheduler({"intermediate_sigmas": sigmas or []})
        if sigmas:
            return scheduler, []
        second = scheduler.sampling_sigmas(2)[1]
        return scheduler, [
            f"Two steps go through {second:.4g}, stock diffusers' default: `intermediate_sigmas` sets another."
        ]
    wanted = [found.second_sigma] if sigmas is None else sigmas
    scheduler = _scheduler({"num_train_timesteps": found.num_levels, "intermediate_sigmas": wanted})
    second, middle = scheduler.sampling_sigmas(2)[1], found.num_levels // 2
    return scheduler, [
        f"Recognised by its name as OpenAI's {found.name}: two steps go through {second:.4g}"
        f"{', the published level' if sigmas is None else ', as was asked for'}.",
        f"timesteps=[{found.index}, 0] of diffusers_ict.ConsistencyPipeline goes through {found.second_sigma:.4g}, as "
        f"published: its indices count the {found.num_levels} levels of rho 7. Stock diffusers has one grid only, in "
        f"whose middle (index {middle}) lies the level of two steps; its other indices are not the published ones.",
    ]


def _refit_note(refit: Refit) -> str:
    return (
        "This network was trained on sigma and not on 250 ln(sigma). Its time embedding was refitted: it is the same "
        f"at the {refit.levels} levels that sampling goes through (to {refit.at_levels:.1e} of its largest value), and "
        f"over all levels its rms error is {refit.between_levels:.1e} of its standard deviation. At {NETWORK_LEVELS} "
        f"levels between them the rms error of the network's output for noise is {refit.network_output:.1e} of the "
        "output's standard deviation. These figures hold in float32; half precision loses more than in other networks."
    )


def _scheduler(config: dict[str, Any]) -> ICTScheduler:
    try:
        return ICTScheduler.from_config(config)
    except ValueError as error:
        raise UserError(f"`intermediate_sigmas`: {error}") from error


def _sampling_levels(scheduler: ICTScheduler) -> torch.Tensor:
    """Every noise level that sampling by a number of steps may go through: the stock grid and the levels set."""
    grid = scheduler.sampling_sigmas(scheduler.config.num_train_timesteps)
    # The grid passes through the first of them, up to rounding.
    others = [s for s in scheduler.config.intermediate_sigmas if abs(grid / s - 1).min() > 1e-6]
    return torch.tensor([*grid, *others], dtype=torch.float64)


def _read(path: Path) -> dict[str, Any]:
    """The checkpoint's dictionary; nothing but tensors and plain containers is unpickled."""
    name = shown(path.name)
    try:
        _check_file(path)
        # Files of PyTorch before 1.6 are no archives, and cannot be mapped into memory.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no file {shown(str(path))}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name} holds more than tensors and plain containers, and loading that could run any code: ask its "
            "author for the bare weights."
        ) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(f"{name} cannot be read as a PyTorch file: {first_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{name} must hold a dictionary of tensors, and holds a {type(checkpoint).__name__}.")
    return checkpoint


def _check_file(path: Path) -> None:
    """Check that a file is not empty, and of an archive the checksum of every member.

    Raises:
        UserError: it is empty or damaged; OSError, ValueError: there is no such file, or there cannot be.
    """
    name = shown(path.name)
    with path.open("rb") as file:
        start = file.read(len(ARCHIVE))
    if not start:
        raise UserError(f"{name} is empty.")
    if start != ARCHIVE and not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile's own, zlib's, or of the operating system
        raise UserError(f"{name} is damaged or incomplete, get it again: {first_line(error)}") from error
    if damaged is not None:
        raise UserError(f"{name} is damaged, get it again: the checksum of {shown(damaged)} in it is wrong.")
