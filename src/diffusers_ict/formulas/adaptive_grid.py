"""Noise levels whose distances follow from how fast a network's output changes between them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .dropout import reuse_masks
from .noise_schedule import SIGMA_MAX, SIGMA_MIN
from .preconditioning import ConsistencyFunction, Told, per_image

DIFFERENCE = 0.01  # of a level: the step of the finite difference
MOST_LEVELS = 1281  # the last stage of iCT's curriculum


def step_sums(output: Tensor, before: Tensor, x: Tensor, difference: float) -> Tensor:
    """Sums over images [B, C, H, W] of <v, f - x> and |v|^2, v = (output - before) / difference: float64 [2]."""
    velocity = ((output - before) / difference).double()
    return torch.stack([(velocity * (output - x).double()).sum(), velocity.square().sum()])


def step_size(sums: Tensor, trade_off: float) -> Tensor:
    """The step D that balances two errors of a pair: float64 []. ADCM (Bai et al., arXiv:2510.17266) Eq. 10.

    It minimises E |f(x_t) - f(x_{t-D})|^2 + lambda E |f(x_{t-D}) - x|^2, how far neighbours are apart and how far the
    target is from the image, where f(x_{t-D}) = f(x_t) - D v.

    Args:
        sums: of `step_sums`, over as many images as there are.
        trade_off: lambda; larger ones make larger steps.
    """
    along, squared = sums
    return trade_off * along / ((1 + trade_off) * squared)


def adaptive_levels(
    f: ConsistencyFunction | Callable,
    x: Tensor,
    noise: Tensor,
    class_labels: Told,
    trade_off: float,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Levels from sigma_max down to sigma_min, each by `step_size` below the one before: ascending, float64 [N].

    Neighbours lie at least so far apart that N is at most 1281. ADCM Algorithm 1, with a finite difference along the
    noise ray for its derivative.

    Args:
        f: the consistency function.
        x: images in [-1, 1], [B, C, H, W]; noise: standard normal, same shape.
        class_labels: [B], a `Condition`, or None.
        total: adds up the sums of all processes.
    """

    def output(t: float) -> Tensor:
        level = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        return f(x + per_image(level, x) * noise, level, class_labels)

    levels, least = [sigma_max], 1 - math.exp(-math.log(sigma_max / sigma_min) / (MOST_LEVELS - 1))
    while levels[-1] > sigma_min:
        t = levels[-1]
        with torch.no_grad():
            here = output(t)
            with reuse_masks():
                before = output(t * (1 - DIFFERENCE))
        step = step_size(total(step_sums(here, before, x, DIFFERENCE * t)), trade_off).item()
        step = max(step, least * t) if math.isfinite(step) else least * t
        levels.append(t - step if t - step > sigma_min * (1 + least) else sigma_min)
    return torch.tensor(levels[::-1], dtype=torch.float64)
