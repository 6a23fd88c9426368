"""From a file or a repository of any known layout to a ConsistencyPipeline."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel

from ..errors import UserError
from ..formulas.preconditioning import DIFFUSION_SIGMA_DATA
from ..formulas.time_embedding import fast_columns
from ..hub.fetch import fetch_file
from ..hub.metadata import ConversionMetadata
from ..loading import load_pipeline
from ..pipeline_consistency import ConsistencyPipeline
from ..scheduling_ict import ICTScheduler
from ..trial import check_config
from . import act_release, diffusion, openai_layout
from .checkpoint import check_tensors, read_checkpoint, shown
from .time_refit import NETWORK_LEVELS, refit_from_sigma
from .unet_shape import build, complete, read_config

SUFFIXES = (".pt", ".pth", ".ckpt")
LAYOUTS: tuple[Any, ...] = (openai_layout, act_release)  # modules with ORIGIN, RELEASES, recognises, read


@dataclass(frozen=True)
class ConvertedModel:
    """A converted model.

    Attributes:
        pipeline: ready to be sampled and saved; origin: the kind of source; notes: for its user.
        refit: how exact a time embedding is that had to be refitted, as `refit_from_sigma` says, or None.
        prediction: of a diffusion model, what it predicted; None for a consistency model.
    """

    pipeline: ConsistencyPipeline
    origin: str
    notes: tuple[str, ...] = ()
    refit: dict[str, float] | None = None
    prediction: str | None = None

    @property
    def needs_alignment(self) -> bool:
        """Whether it is a diffusion model of which some steps of denoising must make a consistency model first."""
        return self.prediction not in (None, *diffusion.ALIGNED)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do with it, for who has just converted it."""
        return ("Train it with `loss` ect, which aligns it first.",) if self.needs_alignment else ()


def convert(
    source: str,
    *,
    resolution: int | None = None,
    attention_head_dim: int | None = None,
    intermediate_sigmas: list[float] | None = None,
) -> ConvertedModel:
    """Convert a consistency model, or a diffusion model to begin with, into a stock consistency pipeline.

    Args:
        source: a .pt file of openai/consistency_models, a .ckpt file of the ACT release, or a folder or Hub id of a
            stock consistency pipeline, or of a pipeline with a UNet2DModel and a DDPM, DDIM or PNDM scheduler. Files
            are read without running code that they may hold.
        resolution, attention_head_dim: image side in pixels, and channels of an attention head, for files of other
            networks than the released ones.
        intermediate_sigmas: noise levels between sampling steps; by default those of the source, which for a file is
            the published level of a network of openai/consistency_models that its name tells, such as
            ct_imagenet64.pt, and otherwise the middle of the stock grid.

    Raises:
        UserError: the source cannot be converted; says why.
    """
    if Path(source).suffix in SUFFIXES:
        return _from_file(Path(source), resolution, attention_head_dim, intermediate_sigmas)
    return _from_repository(source, intermediate_sigmas)


def _from_repository(source: str, intermediate_sigmas: list[float] | None) -> ConvertedModel:
    if not source.isprintable():
        raise UserError(f"{shown(source)} cannot be the name of a repository: not all of its characters are printable.")
    stock = _load(source)
    check_tensors(stock.unet.state_dict())
    # diffusers keeps the place it read from in the config; it must not travel on.
    stock.unet.register_to_config(_name_or_path="")
    if isinstance(stock, ConsistencyModelPipeline):
        origin, notes, prediction = "a stock consistency pipeline", [], _recorded_prediction(source)
        scheduler = ConsistencyPipeline(stock.unet, stock.scheduler).scheduler
    else:
        origin, prediction = "a diffusion model", stock.scheduler.config.get("prediction_type", "epsilon")
        notes = diffusion.to_consistency(stock.unet, stock.scheduler.config)
        scheduler = ICTScheduler(sigma_data=DIFFUSION_SIGMA_DATA)
    if intermediate_sigmas is not None:
        scheduler = _scheduler({**scheduler.config, "intermediate_sigmas": intermediate_sigmas})
    return ConvertedModel(ConsistencyPipeline(stock.unet, scheduler), origin, tuple(notes), prediction=prediction)


def _recorded_prediction(source: str) -> str | None:
    """What a repository says that it was before it was converted, if it is a diffusion model and was not trained."""
    try:
        file = fetch_file(source, ConversionMetadata.file_name)
    except UserError:  # the pipeline came from the cache
        return None
    return None if file is None else ConversionMetadata.read(file.parent).prediction


def _load(source: str) -> DiffusionPipeline:
    """The pipeline of a UNet2DModel with a scheduler that says what it was trained for, or a UserError."""
    if os.path.isfile(f"{source}/config.json") and not os.path.isfile(f"{source}/model_index.json"):
        raise UserError(
            f"{shown(source)} is a network without a scheduler, which says what it was trained for: save both as one "
            "pipeline, as DDPMPipeline(unet, scheduler) does."
        )
    pipeline = load_pipeline(source)
    if problem := _problem(pipeline):
        raise UserError(f"{shown(source)} {problem}")
    return pipeline


def _problem(pipeline: DiffusionPipeline) -> str | None:
    unet, scheduler = (getattr(pipeline, name, None) for name in ("unet", "scheduler"))
    if not isinstance(unet, UNet2DModel):
        return f"must hold a UNet2DModel, and holds a {type(pipeline).__name__}."
    if others := ", ".join(sorted(pipeline.components.keys() - {"unet", "scheduler"})):
        return f"must draw pixels with a UNet alone, and it also holds {others}: its network knows latents, not images."
    if not isinstance(pipeline, ConsistencyModelPipeline) and type(scheduler).__name__ not in diffusion.SCHEDULERS:
        allowed = ", ".join(diffusion.SCHEDULERS)
        return (
            f"must be a consistency model, or a diffusion model with one of {allowed}, and it has "
            f"{type(scheduler).__name__}."
        )
    try:
        check_config(UNet2DModel, unet.config, "its UNet")
        fast_columns(unet)
    except ValueError as error:
        return f"cannot be converted: {error}"
    return None


def _from_file(path: Path, resolution: int | None, head_dim: int | None, sigmas: list[float] | None) -> ConvertedModel:
    checkpoint, name = read_checkpoint(path), shown(path.name)
    layout = next((layout for layout in LAYOUTS if layout.recognises(checkpoint)), None)
    if layout is None:
        first = ", ".join(shown(key) for key in list(checkpoint)[:3]) or "none"
        raise UserError(
            f"{name} has neither the layout of openai/consistency_models (time_embed, input_blocks) nor that of "
            f"the ACT release ({act_release.PREFIX}*): its first entries are {first}."
        )
    weights, done = layout.read(checkpoint)
    config = read_config(weights)
    config = complete({**config, **layout.RELEASES.get(config["block_out_channels"], {})}, name, resolution, head_dim)
    released = openai_layout.released_name(path.name) if layout is openai_layout else None
    scheduler, notes = _make_scheduler(released, sigmas)
    unet = build(config, weights)
    refit, prediction = None, None
    if layout is act_release:
        refit = refit_from_sigma(unet, _sampling_levels(scheduler))
        notes.append(_describe(**refit))
    elif openai_layout.is_edm(path.name):
        prediction, notes = diffusion.EDM, diffusion.edm_to_consistency(unet)
    return ConvertedModel(ConsistencyPipeline(unet, scheduler), layout.ORIGIN, (*done, *notes), refit, prediction)


def _make_scheduler(released: str | None, sigmas: list[float] | None) -> tuple[ICTScheduler, list[str]]:
    """The scheduler of a file's network, and what to say of its levels. `sigmas`: those the user wants, or None."""
    if released is None:
        scheduler = _scheduler({"intermediate_sigmas": sigmas or []})
        second = scheduler.sampling_sigmas(2)[1]
        note = f"Two steps go through {second:.4g}, stock diffusers' default: `intermediate_sigmas` sets another."
        return scheduler, [] if sigmas else [note]
    num_levels, index, published = openai_layout.TWO_STEPS[released]
    levels, which = ([published], "the published level") if sigmas is None else (sigmas, "as was asked for")
    scheduler = _scheduler({"num_train_timesteps": num_levels, "intermediate_sigmas": levels})
    second = scheduler.sampling_sigmas(2)[1]
    return scheduler, [
        f"Recognised by its name as OpenAI's {released}: two steps go through {second:.4g}, {which}.",
        f"timesteps=[{index}, 0] of diffusers_ict.ConsistencyPipeline goes through {published:.4g}, as published: its "
        f"indices count the {num_levels} levels of rho 7. Stock diffusers has one grid only, in whose middle (index "
        f"{num_levels // 2}) lies the level of two steps; its other indices are not the published ones.",
    ]


def _describe(levels: float, at_levels: float, between_levels: float, network_output: float) -> str:
    return (
        "This network was trained on sigma and not on 250 ln(sigma). Its time embedding was refitted: it is the same "
        f"at the {levels} levels that sampling goes through (to {at_levels:.1e} of its largest value), and over all "
        f"levels its rms error is {between_levels:.1e} of its standard deviation. At {NETWORK_LEVELS} levels between "
        f"them the rms error of the network's output for noise is {network_output:.1e} of the output's standard "
        "deviation. These figures hold in float32; half precision loses more than in other networks."
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
