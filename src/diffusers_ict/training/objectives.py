"""The objective that a recipe asks for."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UserError
from ..formulas.distances import squared_l2
from ..formulas.noise_schedule import act_num_levels, ct_num_levels
from ..objectives.base import Objective
from ..objectives.ct import CT
from ..objectives.ect import ECT
from ..objectives.ict import ICT
from ..objectives.lpips import LPIPS
from .recipe import Recipe

ECT_STAGES = 8  # as in ECT's long run, where the recipe states no other length


def make_objective(recipe: Recipe, batch_size: int, device: torch.device) -> Objective:
    """The consistency objective of a recipe; for ACT, the one the adversarial term is mixed into.

    Args:
        batch_size: images of one optimizer step on all processes together.

    Raises:
        UserError: LPIPS without weights.
    """
    if recipe.consistency_loss == "ict":
        return ICT(recipe.s0, recipe.s1, recipe.p_mean, recipe.p_std, recipe.huber_c)
    if recipe.consistency_loss == "ect":
        images = recipe.ect_stage_images
        steps = None if images is None else max(1, round(images / batch_size))
        drawn = recipe.p_mean, recipe.p_std, recipe.huber_c or 0.0
        return ECT(recipe.ect_q, steps, ECT_STAGES, recipe.align_steps or 0, *drawn)
    levels = act_num_levels if recipe.loss == "act" else ct_num_levels
    return CT(recipe.s0, recipe.s1, recipe.teacher_mu0, make_metric(recipe, device), levels)


def check_curriculum(objective: Objective, total_steps: int) -> None:
    """Check that the steps are enough for the curriculum.

    Raises:
        UserError: they are not.
    """
    try:
        objective.schedule(0, total_steps)
    except ValueError as error:
        raise UserError(f"`max_train_steps`: {error}") from error


def make_metric(recipe: Recipe, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """CT's distance of a pair.

    Raises:
        UserError: the weights of LPIPS are missing or cannot be used.
    """
    if recipe.metric == "l2":
        return squared_l2
    try:
        given = recipe.lpips_weights
        return (LPIPS.from_package() if given is None else LPIPS.from_safetensors(given)).to(device)
    except ImportError as error:
        raise UserError("`metric` lpips needs `lpips_weights` FILE, or the package: pip install lpips.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"`lpips_weights` cannot be used: {error}") from error
