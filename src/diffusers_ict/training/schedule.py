"""Which steps of a run do more than train: log entries, checkpoints and samples."""

import math

from .recipe import Recipe

SAMPLES_AT = (0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the run
DRY_RUN_STEPS = 4


def is_due(step: int, every: int | None) -> bool:
    """Whether optimizer step `step` (from 0) is one of every `every`."""
    return every is not None and (step + 1) % every == 0


def is_sample_step(recipe: Recipe, step: int) -> bool:
    """Whether samples are drawn after optimizer step `step` (from 0).

    Every `validation_steps` if they are given, else early and at every checkpoint; after the last step in any case.
    """
    total = recipe.max_train_steps
    if recipe.validation_steps is not None:
        return is_due(step, recipe.validation_steps) or step + 1 == total
    early = {max(1, math.ceil(share * total)) for share in SAMPLES_AT}
    return step + 1 in early or is_due(step, recipe.checkpointing_steps)


def last_step(recipe: Recipe, first_step: int) -> int:
    """The end of the loop: all steps, or a few to measure their time in a dry run."""
    return min(recipe.max_train_steps, first_step + DRY_RUN_STEPS) if recipe.dry_run else recipe.max_train_steps
