"""What a run begins with: its objective, and nothing, a consistency model, or a diffusion model that becomes one."""

import math
import re
from typing import Any

from ..conversion import ConvertedModel, convert
from ..data import TrainingData
from ..data.pairs import scale_of_residuals
from ..errors import UserError
from ..formulas.preconditioning import SIGMA_DATA
from ..objectives import BUILT_IN, objective_class
from ..objectives.base import Objective
from ..scheduling_ict import ICTScheduler
from .recipe import SHORT, Recipe

ALIGN_STEPS = 500
LEVELS_OF_LATENTS = 100


def load_start(recipe: Recipe) -> ConvertedModel | None:
    """The model that a run begins with, as a consistency model in float32; None for one that begins afresh.

    Raises:
        UserError: there is no such model, or it cannot become a consistency model.
    """
    if recipe.pretrained_model_name_or_path is None:
        return None
    try:
        return convert(recipe.pretrained_model_name_or_path)
    except UserError as error:
        raise UserError(f"`pretrained_model_name_or_path`: {error}") from error


def make_objective(recipe: Recipe, start: ConvertedModel | None) -> Objective:
    """The objective of a recipe. A start that has to be aligned gets 500 steps of it, where the recipe says nothing.

    Raises:
        UserError: settings that it does not have, values that are not allowed, or a start that it does not align.
    """
    if recipe.loss not in BUILT_IN:
        raise UserError(f"`loss` must be one of {', '.join(BUILT_IN)}, got {recipe.loss}.")
    try:
        objective = objective_class(recipe.loss).from_settings(**recipe.objective)
    except ValueError as error:
        flags = {name for flag, name in SHORT.items() if flag == name} | {"objective"}
        told = re.sub(r"`(\w+)`", lambda name: name[0] if name[1] in flags else f"`objective` {name[1]}", str(error))
        raise UserError(told) from error
    if start is None or not start.needs_alignment:
        return objective
    if "align_steps" not in objective.settings():
        raise UserError(
            "`loss` must be ect, or act with `objective` consistency=ect, to begin with a diffusion model that "
            f"predicts {start.prediction}, because only ECT aligns it first, got {recipe.loss}."
        )
    return objective_class(recipe.loss).from_settings(**{"align_steps": ALIGN_STEPS, **recipe.objective})


def scheduler_for(data: TrainingData, scheduler: ICTScheduler, learn_residual: bool) -> ICTScheduler:
    """A run's scheduler, which clips only where what the network learns lies within [-1, 1].

    That of latents has more levels, because stock LDMPipeline takes 50 steps where nothing is said.

    Raises:
        UserError: residuals that are all 0, or not finite.
    """
    changes: dict[str, Any] = {}
    if data.normalization is not None:
        changes = {"clip_denoised": data.normalization.bounded}
    if data.vae is not None:
        changes = {"clip_denoised": False, "num_train_timesteps": LEVELS_OF_LATENTS}
    if learn_residual:
        scale = scale_of_residuals(data.examples)
        if not math.isfinite(scale):
            raise UserError("`learn_residual` needs images and conditions of finite numbers, and some are not.")
        if scale == 0:
            raise UserError("`learn_residual` learns nothing where each image is its own condition: leave it out.")
        changes = {"clip_denoised": False, "residual_scale": scale}
    return ICTScheduler.from_config(scheduler.config, **changes) if changes else scheduler


def check_curriculum(objective: Objective, total_steps: int) -> None:
    """Check that the steps are enough for the curriculum.

    Raises:
        UserError: they are not.
    """
    try:
        objective.schedule(0, total_steps)
    except ValueError as error:
        raise UserError(f"`max_train_steps`: {error}") from error


def make_scheduler(recipe: Recipe, start: ConvertedModel | None) -> ICTScheduler:
    """The scheduler of a run, with the sigma_data of its start.

    Raises:
        UserError: intermediate sigmas that cannot be, or a start that learned something else.
    """
    sigma_data = SIGMA_DATA if start is None else start.pipeline.scheduler.config.sigma_data
    if start is not None and recipe.learn_residual != (start.pipeline.scheduler.config.residual_scale is not None):
        what, remedy = (
            ("images", "leave it out") if recipe.learn_residual else ("differences from conditions", "set it")
        )
        raise UserError(f"`learn_residual` has to be as in the start's training, which learned {what}: {remedy}.")
    try:
        return ICTScheduler(sigma_data=sigma_data, intermediate_sigmas=recipe.intermediate_sigmas)
    except ValueError as error:
        reason = str(error).removeprefix("intermediate_sigmas ")
        raise UserError(f"`intermediate_sigmas`: {reason}") from error


def unusual_constants(scheduler: ICTScheduler) -> dict[str, float]:
    """The constants of the preconditioning that are not the usual ones: they decide the result of a run."""
    usual = {"sigma_data": SIGMA_DATA, "residual_scale": None}
    return {name: scheduler.config[name] for name in usual if scheduler.config[name] != usual[name]}
