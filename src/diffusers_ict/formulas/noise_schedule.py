"""Noise levels: the grid, the two curricula that refine it, and how a training step picks from it.

A grid is an ascending float64 tensor of N noise levels; pair i (0-based) is (sigmas[i], sigmas[i + 1]), so N levels
have N - 1 pairs. Sources: iCT (arXiv:2310.14189), CT (arXiv:2303.01469), EDM (arXiv:2206.00364).
"""

import math

import torch
from torch import Tensor

from .stock_grid import between_levels, middle_level

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0
LEAST_RHO, LARGEST_RHO = 0.5, 1e4  # of a saved scheduler


def level_dtype(device: torch.device | str | None) -> torch.dtype:
    """The type noise levels are kept in on a device: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if str(device).startswith("mps") else torch.float64


def karras_sigmas(
    num_levels: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """The grid of N noise levels, EDM Eq. 5 and iCT Sec. 2: ascending, float64, [N], with exact end points.

    Raises:
        ValueError: fewer than two levels.
    """
    if num_levels < 2:
        raise ValueError(f"a grid needs at least 2 noise levels for one pair, got {num_levels}.")
    return karras_level(torch.linspace(0, 1, num_levels, dtype=torch.float64), sigma_min, sigma_max, rho)


def karras_level(ramp: Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """The level at a place in the grid, EDM Eq. 5: sigma_min at 0, sigma_max at 1. float64, in the shape of ramp.

    The end points are exact, because (sigma_min ** (1 / rho)) ** rho is not sigma_min in floating point and the
    boundary condition f(x, sigma_min) = x is.
    """
    sigmas = between_levels(ramp, sigma_min, sigma_max, rho)
    return sigmas.masked_fill(ramp == 0, sigma_min).masked_fill(ramp == 1, sigma_max)


def karras_ramp(sigma: Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """n / (N - 1) of the level with index n in any grid of `karras_sigmas`: 0 at sigma_min, 1 at sigma_max.

    The inverse of `karras_level`: where a level stands in its grid follows from the level alone. Same shape as sigma.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return ((sigma ** (1 / rho) - low) / (high - low)).clamp(0, 1)


def ict_num_levels(step: int, total_steps: int, s0: int = 10, s1: int = 1280) -> int:
    """N(k) of iCT, Eq. 11: s0 pairs, doubled at equal intervals until s1, plus one (the +1 is outside the min).

    Raises:
        ValueError: `total_steps` too small to hold one optimizer step per stage.
    """
    stages = math.log2(math.floor(s1 / s0)) + 1
    interval = math.floor(total_steps / stages)
    if interval < 1:
        raise ValueError(
            f"the iCT curriculum from {s0} to {s1} has {math.ceil(stages)} stages and needs at least as many "
            f"steps, got {total_steps}."
        )
    return min(s0 * 2 ** (step // interval), s1) + 1


def ct_num_levels(step: int, total_steps: int, s0: int = 2, s1: int = 150) -> int:
    """N(k) of CT, Appendix C: the square root schedule from s0 to s1 + 1 levels, at least 2."""
    return max(math.ceil(math.sqrt(step / total_steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1), 1) + 1


def act_num_levels(step: int, total_steps: int, s0: int = 2, s1: int = 150) -> int:
    """N(k) of ACT's released code (`bins` of its training scripts): the square root schedule from s0 to s1 levels."""
    return max(round(math.sqrt(step / total_steps * (s1**2 - s0**2) + s0**2)), 2)


def ct_teacher_decay(num_levels: int, s0: int = 2, mu0: float = 0.9) -> float:
    """mu(k) = exp(s0 ln(mu0) / (N(k) - 1)): decay of the teacher's EMA.

    CT's Appendix C divides by N(k). The released code of CT (`create_ema_and_scales_fn` of openai/consistency_models)
    and that of ACT (`ema_decay` of its training scripts) divide by the number of pairs N(k) - 1, as here: 0.810 at the
    first step on CIFAR-10, not 0.900.
    """
    return math.exp(s0 * math.log(mu0) / (num_levels - 1))


def lognormal_pair_probabilities(sigmas: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """p(i) of iCT, Eq. 10: the mass a lognormal puts between neighbouring levels. sigmas [N] -> [N - 1]."""
    cdf = torch.erf((sigmas.log() - mean) / (math.sqrt(2) * std))
    mass = cdf.diff()
    return mass / mass.sum()


def uniform_pair_probabilities(sigmas: Tensor) -> Tensor:
    """CT draws every pair equally often. sigmas [N] -> [N - 1]."""
    return torch.full_like(sigmas[1:], 1 / (len(sigmas) - 1))


def ict_weighting(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """lambda(sigma_i) = 1 / (sigma_{i+1} - sigma_i), iCT Sec. 3.1. Same shape as its arguments."""
    return 1 / (sigma_next - sigma)


def rho_through(
    sigma: float, num_train_timesteps: int = 40, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
) -> float:
    """The rho for which diffusers' stock scheduler takes `sigma` as the second of two sampling steps.

    The stock CMStochasticIterativeScheduler knows no list of sigmas: with two steps it takes the `middle_level` of its
    grid. rho serves nothing but that grid, and the level falls monotonically as rho grows, so bisection finds it to the
    last bit of float64.

    Raises:
        ValueError: no rho in [0.5, 1e4] reaches `sigma`.
    """

    def level(rho: float) -> float:
        return middle_level(num_train_timesteps, sigma_min, sigma_max, rho)

    small, large = LEAST_RHO, LARGEST_RHO
    if not level(large) < sigma < level(small):
        raise ValueError(
            f"the middle of a {num_train_timesteps}-level stock grid can be any sigma between {level(large):.4g} "
            f"and {level(small):.4g}, got {sigma}; choose an intermediate sigma in that range."
        )
    while small < (middle := (small + large) / 2) < large:
        small, large = (middle, large) if level(middle) > sigma else (small, middle)
    return small
