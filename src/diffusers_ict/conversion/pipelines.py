"""From a file or a repository of any known layout to a ConsistencyPipeline."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, first_line
from ..pipeline_consistency import ConsistencyPipeline, load_stock
from ..scheduling_ict import ICTScheduler
from ..time_embedding import fast_columns
from . import act_release, openai_layout, unet_shape

SUFFIXES = (".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        pipeline: ready to be sampled and saved; origin: the kind of source; notes: for its user.
    """

    pipeline: ConsistencyPipeline
    origin: str
    notes: tuple[str, ...] = ()


def convert(
    source: str,
    *,
    resolution: int | None = None,
    attention_head_dim: int | None = None,
    intermediate_sigmas: list[float] | None = None,
) -> Converted:
    """Convert a consistency model into a stock diffusers pipeline.

    Args:
        source: a .pt file of openai/consistency_models, a .ckpt file of the ACT release, or a folder or Hub id of a
            stock consistency pipeline. Files are read without running code that they may hold.
        resolution: image side in pixels, for files of other networks than the released ones.
        attention_head_dim: channels of an attention head, for files of other networks than the released ones.
        intermediate_sigmas: noise levels between sampling steps; by default those of the source, which for files is
            the middle of the stock grid.

    Raises:
        UserError: the source cannot be converted; says why.
    """
    if Path(source).suffix in SUFFIXES:
        try:
            return _from_file(Path(source), resolution, attention_head_dim, intermediate_sigmas or [])
        except KeyError as error:
            raise UserError(f"{Path(source).name} is incomplete: it has no {error.args[0]}.") from error
    return _from_repository(source, intermediate_sigmas)


def _from_repository(source: str, intermediate_sigmas: list[float] | None) -> Converted:
    stock = load_stock(source)
    try:
        fast_columns(stock.unet)
    except ValueError as error:
        raise UserError(f"{source} cannot be converted: {error}") from error
    pipeline = ConsistencyPipeline(stock.unet, stock.scheduler)
    if intermediate_sigmas is not None:
        pipeline = ConsistencyPipeline(stock.unet, _with_levels(pipeline.scheduler, intermediate_sigmas))
    # diffusers keeps the place it read from in the config; it must not travel on.
    pipeline.unet.register_to_config(_name_or_path="")
    return Converted(pipeline, "a stock consistency pipeline")


def _from_file(path: Path, resolution: int | None, head_dim: int | None, sigmas: list[float]) -> Converted:
    checkpoint = _read(path)
    scheduler = _with_levels(ICTScheduler(), sigmas)
    if openai_layout.recognises(checkpoint):
        stages = openai_layout.read_stages(checkpoint)
        config = openai_layout.read_config(checkpoint, stages)
        config["attention_head_dim"] = openai_layout.HEAD_DIM
        config["sample_size"] = openai_layout.SIZES.get(stages.widths)
        state, origin = openai_layout.rename(checkpoint, stages), "a checkpoint of openai/consistency_models"
    elif act_release.recognises(checkpoint):
        state = act_release.unet_state(checkpoint)
        stages = act_release.read_stages(state)
        config, origin = act_release.read_config(state, stages), "a checkpoint of the ACT release"
    else:
        raise UserError(
            f"{path.name} has neither the layout of openai/consistency_models (time_embed, input_blocks) nor that of "
            f"the ACT release ({act_release.PREFIX}*): its first entries are {', '.join(list(checkpoint)[:3])}."
        )
    if resolution is not None:
        config["sample_size"] = resolution
    if head_dim is not None:
        config["attention_head_dim"] = head_dim
    if config.get("sample_size") is None:
        raise UserError(f"{path.name} is none of the released networks: give `resolution`, the side of its images.")
    unet_shape.check_heads(stages, config.get("attention_head_dim"))
    unet = unet_shape.build(config, state)
    notes = []
    if not sigmas:
        second = scheduler.sampling_sigmas(2)[1]
        notes.append(
            f"Two steps go through {second:.4g}, stock diffusers' default: `intermediate_sigmas` sets another."
        )
    if act_release.recognises(checkpoint):
        levels = _sampling_levels(scheduler)
        error = act_release.refit_time_embedding(unet, levels)
        notes.append(
            f"This network was trained on sigma and not on 250 ln(sigma). Its time embedding was refitted: the same at "
            f"the {len(levels)} levels that sampling goes through (to {error:.1e}), interpolated between them."
        )
    return Converted(ConsistencyPipeline(unet, scheduler), origin, tuple(notes))


def _with_levels(scheduler: ICTScheduler, intermediate_sigmas: list[float]) -> ICTScheduler:
    try:
        return ICTScheduler.from_config({**scheduler.config, "intermediate_sigmas": intermediate_sigmas})
    except ValueError as error:
        raise UserError(f"`intermediate_sigmas`: {error}") from error


def _sampling_levels(scheduler: ICTScheduler) -> torch.Tensor:
    """Every noise level that sampling without `sigmas=` may go through: the stock grid and the levels set."""
    grid = scheduler.sampling_sigmas(scheduler.config.num_train_timesteps)
    # The grid passes through the first of them, up to rounding.
    others = [s for s in scheduler.config.intermediate_sigmas if abs(grid / s - 1).min() > 1e-6]
    return torch.tensor([*grid, *others], dtype=torch.float64)


def _read(path: Path) -> dict[str, Any]:
    """The checkpoint's dictionary; nothing but tensors and plain containers is unpickled."""
    try:
        # Files of PyTorch before 1.6 are no archives, and cannot be mapped into memory.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path.name} holds more than tensors and plain containers, and loading that could run any code: ask its "
            "author for the bare weights."
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path.name} cannot be read as a PyTorch file: {first_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path.name} must hold a dictionary of tensors, and holds a {type(checkpoint).__name__}.")
    return checkpoint
