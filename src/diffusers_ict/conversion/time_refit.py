"""A network that takes the noise level sigma, turned into one that takes 250 ln(sigma), as stock diffusers gives it.

The time embedding is e(sigma) = W2 silu(W1 phi(sigma) + b1) + b2 with features phi of sin and cos. Features of
250 ln(sigma) do not span those of sigma: with 128 features and random weights, the best W1 and b1 in the sense of least
squares leave an rms error of 32 % of the first layer's standard deviation. Both layers are refitted instead. The first
becomes a row of hinges silu(h - k) with equally spaced knots k, where h(sigma) is one ascending combination of the
features; the second becomes the coefficients of a smooth spline on these hinges.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import UserError
from ..formulas.noise_schedule import SIGMA_MAX, SIGMA_MIN
from ..formulas.preconditioning import c_noise

FIT_LEVELS = 4096
TEST_LEVELS = 3001  # of the embedding; none of them but the ends is a level of the fit
NETWORK_LEVELS = 64
# Weights of the penalties on large coefficients, relative to the mean square of a residual. The first keeps weights
# small enough for half precision, the second only makes the solution unique.
HEIGHT_RIDGE, SPLINE_RIDGE = 1e-9, 1e-10


@dataclass(frozen=True)
class Refit:
    """How far a refitted network is from the original.

    Attributes:
        levels: number of noise levels that were met exactly.
        at_levels: largest error of the time embedding there, relative to its largest value.
        between_levels: rms error of the time embedding over all levels, in units of its standard deviation.
        network_output: the same of the network's output, for inputs of standard normal noise.
    """

    levels: int
    at_levels: float
    between_levels: float
    network_output: float


def refit_time_embedding(
    unet: UNet2DModel, sigmas: Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
) -> Refit:
    """Turn a network that takes sigma into one that takes 250 ln(sigma), with the same outputs.

    The second layer is the least squares fit over levels between sigma_min and sigma_max, under the condition that the
    embedding is met exactly at given levels. All is computed in float64; the weights are rounded to float32.

    Args:
        unet: a network in float32 on the CPU, changed in place.
        sigmas: noise levels to be met exactly [n].
        sigma_min, sigma_max: the range of noise levels.

    Raises:
        UserError: more levels than the second layer has features.
    """
    first, second = unet.time_embedding.linear_1, unet.time_embedding.linear_2
    if len(sigmas) > second.in_features:
        raise UserError(
            f"{len(sigmas)} noise levels are too many for a time embedding of {second.in_features} features."
        )
    fit, test = fit_levels(sigma_min, sigma_max), geometric(TEST_LEVELS, sigma_min, sigma_max)
    few = geometric(2 * NETWORK_LEVELS + 1, sigma_min, sigma_max)[1::2]
    outputs = _outputs(unet, few, few)
    wanted, exact, tested = (embedding(unet, levels) for levels in (fit, sigmas, test))

    set_linear(first, *_hinges(unet.time_proj(c_noise(fit)).double(), fit, first.out_features))
    set_linear(second, *_spline(_hidden(unet, c_noise(fit)), wanted, _hidden(unet, c_noise(sigmas)), exact))

    def embedded(levels: Tensor) -> Tensor:
        with torch.no_grad():
            return unet.time_embedding(unet.time_proj(c_noise(levels)))

    return Refit(
        levels=len(sigmas),
        at_levels=((embedded(sigmas) - exact).abs().max() / exact.abs().max()).item(),
        between_levels=_relative_rms(embedded(test), tested),
        network_output=_relative_rms(_outputs(unet, few, c_noise(few)), outputs),
    )


def fit_levels(sigma_min: float, sigma_max: float) -> Tensor:
    """Noise levels [4096], float64: half of them equally spaced in ln(sigma), half in sigma."""
    even = torch.linspace(sigma_min, sigma_max, FIT_LEVELS // 2, dtype=torch.float64)
    return torch.cat([geometric(FIT_LEVELS // 2, sigma_min, sigma_max), even]).sort().values


def geometric(count: int, low: float, high: float) -> Tensor:
    """Levels [count] from low to high, equally spaced in the logarithm, float64."""
    return torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()


def set_linear(layer: torch.nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Write weight and bias of a layer."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.detach().double(), layer.bias.detach().double())


def _hidden(unet: UNet2DModel, times: Tensor) -> Tensor:
    """silu(W1 phi(times) + b1), float64 [n, hidden]; the features are those the network computes, in float32."""
    first = unet.time_embedding.linear_1
    return F.silu(
        F.linear(unet.time_proj(times).double(), first.weight.detach().double(), first.bias.detach().double())
    )


def embedding(unet: UNet2DModel, times: Tensor) -> Tensor:
    """The time embedding [n, width], in float64."""
    return _linear(unet.time_embedding.linear_2, _hidden(unet, times))


def _hinges(features: Tensor, levels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(weight [count, f], bias [count]) of hinges h - k, float64: all rows are equal, the knots lie in the biases.

    h is the fit of ln(sigma) / ln(sigma_max / sigma_min) + sigma / sigma_max, which spreads the knots like the levels
    of `fit_levels`; its unit is the distance of two knots.
    """
    height = levels.log() / (levels[-1] / levels[0]).log() + levels / levels[-1]
    ones = torch.ones(len(levels), 1, dtype=torch.float64)
    solution = ridge(torch.cat([features, ones], 1), height[:, None], HEIGHT_RIDGE)[:, 0]
    reached = features @ solution[:-1] + solution[-1]
    scale = (count - 1) / (reached[-1] - reached[0])
    knots = torch.arange(count, dtype=torch.float64)
    return (scale * solution[:-1]).expand(count, -1), scale * (solution[-1] - reached[0]) - knots


def _spline(given: Tensor, wanted: Tensor, given_exact: Tensor, wanted_exact: Tensor) -> tuple[Tensor, Tensor]:
    """(weight [m, h], bias [m]), float64, that map `given` [n, h] to `wanted` [n, m] in the sense of least squares.

    `given_exact` [k, h] is mapped to `wanted_exact` [k, m] exactly: a particular solution of these k equations is
    completed by the best one of their null space (Golub and Van Loan, Matrix Computations, Sec. 6.2.3).
    """
    given, given_exact = (torch.cat([g, torch.ones_like(g[:, :1])], 1) for g in (given, given_exact))
    left, values, right = torch.linalg.svd(given_exact)
    rank = int((values > values[0] * 1e-13).sum())  # levels that are equal in float32 are one condition
    particular = right[:rank].T @ ((left[:, :rank].T @ wanted_exact) / values[:rank, None])
    free = right[rank:].T
    solution = particular + free @ ridge(given @ free, wanted - given @ particular, SPLINE_RIDGE)
    return solution[:-1].T, solution[-1]


def ridge(given: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """The x of least |given x - wanted|^2 / n + penalty |x|^2. [n, h], [n, m] -> [h, m]."""
    rows, columns = given.shape
    weight = math.sqrt(penalty * rows)
    system = torch.cat([given, weight * torch.eye(columns, dtype=given.dtype)])
    return torch.linalg.lstsq(system, torch.cat([wanted, wanted.new_zeros(columns, wanted.shape[1])])).solution


@torch.no_grad()
def _outputs(unet: UNet2DModel, levels: Tensor, times: Tensor) -> Tensor:
    """What the network answers to noise of unit variance at these levels, told as `times`. Small images suffice."""
    side = 2 ** len(unet.config.block_out_channels)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(levels), unet.config.in_channels, side, side, generator=generator)
    classes = unet.config.num_class_embeds
    labels = torch.arange(len(levels)) % classes if classes else None
    return torch.cat(
        [
            unet(noise[at], times[at], class_labels=None if labels is None else labels[at], return_dict=False)[0]
            for at in torch.arange(len(levels)).split(8)
        ]
    )


def _relative_rms(got: Tensor, wanted: Tensor) -> float:
    """Root mean square of the error in units of the standard deviation of what is wanted over its first axis."""
    deviation = wanted.double().var(0, correction=0).mean().sqrt()
    return ((got.double() - wanted.double()).square().mean().sqrt() / deviation).item()
