"""What a run begins with: nothing, a consistency model, or a diffusion model that is to become one."""

from ..conversion import ConvertedModel, convert
from ..errors import UserError
from ..formulas.preconditioning import SIGMA_DATA
from ..scheduling_ict import ICTScheduler
from .recipe import Recipe

ALIGN_STEPS = 500


def load_start(recipe: Recipe) -> ConvertedModel | None:
    """The model that a run begins with, as a consistency model in float32; None for one that begins afresh.

    Sets `align_steps`, where it was left out and the model has to be aligned.

    Raises:
        UserError: there is no such model, it cannot become a consistency model, or another loss than ECT has to align
            it.
    """
    name = recipe.pretrained_model_name_or_path
    if name is None:
        return None
    try:
        start = convert(name)
    except UserError as error:
        raise UserError(f"`pretrained_model_name_or_path`: {error}") from error
    if start.needs_alignment:
        if recipe.consistency_loss != "ect":
            raise UserError(
                f"`loss` must be ect, or act with `consistency` ect, to begin with a diffusion model that predicts "
                f"{start.prediction}, because only ECT aligns it first, got {recipe.consistency_loss}."
            )
        if recipe.align_steps is None:
            recipe.align_steps = ALIGN_STEPS
    return start


def make_scheduler(recipe: Recipe, start: ConvertedModel | None) -> ICTScheduler:
    """The scheduler of a run, with the sigma_data of its start.

    Raises:
        UserError: intermediate sigmas that cannot be.
    """
    sigma_data = SIGMA_DATA if start is None else start.pipeline.scheduler.config.sigma_data
    try:
        return ICTScheduler(sigma_data=sigma_data, intermediate_sigmas=recipe.intermediate_sigmas)
    except ValueError as error:
        reason = str(error).removeprefix("intermediate_sigmas ")
        raise UserError(f"`intermediate_sigmas`: {reason}") from error


def unusual_constants(scheduler: ICTScheduler) -> dict[str, float]:
    """The constants of the preconditioning that are not the usual ones: they decide the result of a run."""
    sigma_data = scheduler.config.sigma_data
    return {} if sigma_data == SIGMA_DATA else {"sigma_data": sigma_data}
