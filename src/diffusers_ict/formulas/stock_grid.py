"""The Karras grid, and the level of stock diffusers' second step. No torch: model cards state it, too."""

from typing import Any


def between_levels(ramp: Any, first: float, last: float, rho: float) -> Any:
    """Noise levels between two, EDM (arXiv:2206.00364) Eq. 5: `first` at 0 and `last` at 1, up to rounding.

    `ramp` is a float, an array or a tensor, and so is the result. EDM and stock diffusers begin at the largest level,
    training grids at the smallest: in floating point that is not the same.
    """
    start, end = first ** (1 / rho), last ** (1 / rho)
    return (start + ramp * (end - start)) ** rho


def middle_level(
    num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> float:
    """The level that two steps of stock diffusers go through: index T // 2 of a descending Karras grid of T levels.

    It falls monotonically as rho grows. Defaults are those of the stock scheduler.
    """
    return between_levels((num_train_timesteps // 2) / (num_train_timesteps - 1), sigma_max, sigma_min, rho)
