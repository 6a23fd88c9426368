"""The level of stock diffusers' second step. No torch: model cards state it, too."""


def middle_level(
    num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> float:
    """The level that two steps of stock diffusers go through: index T // 2 of a descending Karras grid of T levels.

    EDM (arXiv:2206.00364), Eq. 5. It falls monotonically as rho grows. Defaults are those of the stock scheduler.
    """
    ramp = (num_train_timesteps // 2) / (num_train_timesteps - 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho
