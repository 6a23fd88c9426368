"""The time embedding of a network, refitted to 250 ln(sigma), which a stock consistency pipeline tells its network.

Networks of the ACT release take sigma itself, diffusion models integer time steps, and EDM networks read 250 ln(sigma)
by the fast frequencies that iCT advises against. The embedding is W2 silu(W1 phi + b1) + b2 with features phi of sin
and cos. Features of 250 ln(sigma) do not span those of sigma: with 128 features and random weights, the best W1 and b1
in the sense of least squares leave an rms error of 32 % of the first layer's standard deviation. So both layers are
refitted, without data. The first becomes hinges silu(+-g (h - k)) with equally spaced knots k, where h(sigma) is one
ascending combination of the features; the second is the ridge regression of the wanted embedding on these hinges.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import UserError
from ..formulas.noise_schedule import SIGMA_MAX, SIGMA_MIN
from ..formulas.preconditioning import c_noise
from ..formulas.time_embedding import fast_columns

FIT_LEVELS = 4096
TEST_LEVELS = 3001  # of the embedding; none of them but the ends is a level of the fit
NETWORK_LEVELS = 64
MARGIN = 0.3  # of ln(sigma) on both sides of a smooth fit, because fits are worst at their ends
SMOOTH_GAIN = 2.0  # slope of the hinges per unit of ln(sigma)
NONE = torch.empty(0)
# Weights of the penalties on large coefficients, relative to the mean square of a residual. The first keeps weights
# small enough for half precision, the second only makes the solution unique, and the third smooths away the wiggle
# that trained networks do not use.
HEIGHT_RIDGE, EXACT_RIDGE, SMOOTH_RIDGE = 1e-9, 1e-10, 1e-4


@torch.no_grad()
def refit_from_sigma(unet: UNet2DModel, sigmas: Tensor) -> dict[str, float]:
    """Turn a network that takes sigma into one that takes 250 ln(sigma), with the same outputs.

    Args:
        unet: a network in float32 on the CPU, changed in place.
        sigmas: noise levels to be met exactly [n].

    Returns:
        levels: number of noise levels that were met exactly.
        at_levels: largest error of the time embedding there, relative to its largest value.
        between_levels: rms error of the time embedding over all levels, in units of its standard deviation.
        network_output: the same of the network's output, for inputs of standard normal noise.

    Raises:
        UserError: more levels than the second layer has features.
    """
    test = torch.from_numpy(np.geomspace(SIGMA_MIN, SIGMA_MAX, TEST_LEVELS))
    few = torch.from_numpy(np.geomspace(SIGMA_MIN, SIGMA_MAX, 2 * NETWORK_LEVELS + 1))[1::2]
    exact, tested, outputs = embedding(unet, sigmas), embedding(unet, test), _outputs(unet, few, few)
    refit_time_embedding(unet, lambda levels: embedding(unet, levels), sigmas)
    got_exact, got = (unet.time_embedding(unet.time_proj(c_noise(levels))) for levels in (sigmas, test))
    return {
        "levels": len(sigmas),
        "at_levels": ((got_exact - exact).abs().max() / exact.abs().max()).item(),
        "between_levels": _relative_rms(got, tested),
        "network_output": _relative_rms(_outputs(unet, few, c_noise(few)), outputs),
    }


@torch.no_grad()
def refit_time_embedding(unet: UNet2DModel, wanted: Callable[[Tensor], Tensor], exact: Tensor | None = None) -> None:
    """Give the time embedding of 250 ln(sigma), for sigma from 0.002 to 80, the values of another one.

    All is computed in float64 and written in the network's dtype.

    Args:
        unet: a network on the CPU, changed in place.
        wanted: the embedding to be reached: noise levels [n] -> [n, width], float64. Called before `unet` is changed.
        exact: noise levels [k] at which it is reached exactly. The fit between them reads all frequencies and is as
            close as the layers allow. Without `exact` it is smooth, and reads the slow frequencies alone.

    Raises:
        UserError: more exact levels than the second layer has features.
    """
    first, second = unet.time_embedding.linear_1, unet.time_embedding.linear_2
    count = first.out_features
    if exact is None:
        margin = math.exp(MARGIN)
        sigmas = torch.from_numpy(np.geomspace(SIGMA_MIN / margin, SIGMA_MAX * margin, FIT_LEVELS))
        exact, height, gain, penalty = sigmas[:0], sigmas.log(), SMOOTH_GAIN, SMOOTH_RIDGE
        columns = ~fast_columns(unet)
    elif len(exact) > count:
        raise UserError(f"{len(exact)} noise levels are too many for a time embedding of {count} features.")
    else:
        halves = [spread(SIGMA_MIN, SIGMA_MAX, FIT_LEVELS // 2) for spread in (np.geomspace, np.linspace)]
        sigmas = torch.from_numpy(np.sort(np.concatenate(halves)))
        # This height spreads the knots like the levels, half of them by ln(sigma) and half by sigma.
        height, penalty = sigmas.log() / math.log(SIGMA_MAX / SIGMA_MIN) + sigmas / SIGMA_MAX, EXACT_RIDGE
        gain = (count - 1) / (height[-1] - height[0]).item()
        columns = torch.ones_like(fast_columns(unet))
    target, exact_target = wanted(sigmas), wanted(exact)
    features, exact_features = (unet.time_proj(c_noise(levels)).double() * columns for levels in (sigmas, exact))
    weight, bias = _ridge(features, height[:, None], HEIGHT_RIDGE)
    knots = torch.linspace(height[0].item(), height[-1].item(), count, dtype=torch.float64)
    gains = torch.tensor([gain, -gain], dtype=torch.float64).repeat(count)[:count]
    first.load_state_dict({"weight": gains[:, None] * weight * columns, "bias": gains * (bias - knots)})
    hidden, exact_hidden = (F.silu(copy.deepcopy(first).double()(x)) for x in (features, exact_features))
    weight, bias = _ridge(hidden, target, penalty, exact_hidden, exact_target)
    second.load_state_dict({"weight": weight, "bias": bias})


@torch.no_grad()
def embedding(unet: UNet2DModel, times: Tensor) -> Tensor:
    """The time embedding of a network at times [n], float64, [n, width]. The features are rounded to float32."""
    return copy.deepcopy(unet.time_embedding).double()(unet.time_proj(times).double())


def _ridge(
    x: Tensor, y: Tensor, penalty: float, exact_x: Tensor = NONE, exact_y: Tensor = NONE
) -> tuple[Tensor, Tensor]:
    """(weight [m, h], bias [m]) of the least |x weight' + bias - y|^2 / n + penalty (|weight|^2 + |bias|^2).

    x [n, h], y [n, m]. `exact_x` [k, h] is mapped to `exact_y` [k, m] exactly: a particular solution of these k
    equations is completed by the best one of their null space (Golub and Van Loan, Matrix Computations, Sec. 6.2.3).
    """
    x = F.pad(x, (0, 1), value=1.0)
    particular, free = x.new_zeros(x.shape[1], y.shape[1]), torch.eye(x.shape[1], dtype=x.dtype)
    if len(exact_x):
        left, values, right = torch.linalg.svd(F.pad(exact_x, (0, 1), value=1.0))
        rank = int((values > values[0] * 1e-13).sum())  # levels that are equal in float32 are one condition
        particular = right[:rank].T @ ((left[:, :rank].T @ exact_y) / values[:rank, None])
        free = right[rank:].T
    system = torch.cat([x @ free, math.sqrt(penalty * len(x)) * torch.eye(free.shape[1], dtype=x.dtype)])
    rest = torch.cat([y - x @ particular, y.new_zeros(free.shape[1], y.shape[1])])
    solution = particular + free @ torch.linalg.lstsq(system, rest).solution
    return solution[:-1].T, solution[-1]


def _outputs(unet: UNet2DModel, levels: Tensor, times: Tensor) -> Tensor:
    """What the network answers to noise of unit variance at these levels, told as `times`. Small images suffice."""
    side = 2 ** len(unet.config.block_out_channels)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(levels), unet.config.in_channels, side, side, generator=generator)
    classes = unet.config.num_class_embeds
    labels = torch.arange(len(levels)) % classes if classes else torch.arange(0)
    batches = zip(noise.split(8), times.split(8), labels.split(8) if classes else [None] * len(levels))
    return torch.cat([unet(x, t, class_labels=label, return_dict=False)[0] for x, t, label in batches])


def _relative_rms(got: Tensor, wanted: Tensor) -> float:
    """Root mean square of the error in units of the standard deviation of what is wanted over its first axis."""
    deviation = wanted.double().var(0, correction=0).mean().sqrt()
    return ((got.double() - wanted.double()).square().mean().sqrt() / deviation).item()
