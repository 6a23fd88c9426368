"""The summary of a run before it begins: images, parameters and stages."""

from bisect import bisect_left
from collections.abc import Iterator

from diffusers import UNet2DModel
from torch import nn

from ..data import TrainingData
from ..discriminator import ConsistencyDiscriminator
from ..formulas.time_embedding import uses_fast_columns
from ..names import visible
from ..objectives.base import Objective
from .recipe import Recipe
from .unets import describe_dropout


def stages(objective: Objective, total_steps: int) -> Iterator[tuple[int, dict[str, float]]]:
    """(first step, schedule) of every stage of the curriculum."""
    step = 0
    while step < total_steps:
        now = objective.schedule(step, total_steps)
        yield step, now

        def is_over(k: int, now: dict[str, float] = now) -> bool:
            return objective.schedule(k, total_steps) != now

        later = range(step + 1, total_steps)  # a schedule never comes back, so its end can be bisected
        step = step + 1 + bisect_left(later, True, key=is_over)


def describe(
    recipe: Recipe,
    data: TrainingData,
    objective: Objective,
    unet: nn.Module,
    discriminator: ConsistencyDiscriminator | None,
    batch_size: int,
) -> str:
    """The lines that every run begins with: images, parameters, dropout, steps, and stages of the curriculum."""
    steps = recipe.max_train_steps
    lines = [
        *(f"{title:<11} {visible(text)}" for title, text in data.overview().items()),
        f"parameters  {_describe_size(unet, discriminator)}",
        *([f"dropout     {describe_dropout(recipe, unet, objective)}"] if isinstance(unet, UNet2DModel) else []),
        f"steps       {steps} of {batch_size} images{_epochs(steps * batch_size, data.count)}",
        *_describe_stages(list(stages(objective, steps))),
    ]
    if isinstance(unet, UNet2DModel) and recipe.insensitive_time_embedding and uses_fast_columns(unet):
        lines.append("time        the given weights use fast frequencies of the time embedding: they are kept")
    return "\n".join(lines)


def _epochs(seen: int, count: int | None) -> str:
    return "" if count is None else f", {seen / count:.1f} epochs"


def _describe_size(unet: nn.Module, discriminator: ConsistencyDiscriminator | None) -> str:
    parameters = sum(p.numel() for p in unet.parameters())
    size = f"{parameters / 1e6:.2f} M"
    if discriminator is not None:
        added = sum(p.numel() for p in discriminator.parameters())
        size += f" and {added / 1e6:.2f} M in the discriminator, {(parameters + added) / 1e6:.2f} M together"
    return size


def _describe_stages(plan: list[tuple[int, dict[str, float]]]) -> list[str]:
    """A line for each name of the schedule: its values, and the steps they begin at."""
    shown = plan if len(plan) <= 12 else [*plan[:6], plan[-1]]
    more = "" if len(plan) <= 12 else " (not all shown)"
    return [
        f"{name:<11} {len(plan)} stages: " + ", ".join(f"{values[name]:g} from step {k}" for k, values in shown) + more
        for name in plan[0][1]
    ]
