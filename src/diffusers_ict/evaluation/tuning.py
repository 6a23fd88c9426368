"""Search for the noise levels between sampling steps: ternary search, then greedily one more level.

CM (arXiv:2303.01469), Sec. 3 and Appendix C: the levels of multistep sampling are chosen one after another, each by
ternary search for the best figure, below the ones that are fixed already.
"""

import math
from collections.abc import Callable
from typing import Any

from ..formulas.noise_schedule import LARGEST_RHO, LEAST_RHO
from ..formulas.stock_grid import middle_level
from ..scheduling_ict import ICTScheduler


def ternary_search(
    figure: Callable[[float], float], low: float, high: float, tolerance: float = 0.1
) -> dict[float, float]:
    """Search the level between `low` and `high` with the least figure, if the figure falls and then rises in ln(sigma).

    Args:
        figure: of a level; not called twice with the same.
        tolerance: the search ends when the interval is that short in ln(sigma): 0.1 is 10 % of a level.

    Returns:
        The figure of every level tried, by level in ascending order. The least of them is too good to be reported: it
        is the best of many on the same noise.
    """
    tried: dict[float, float] = {}

    def at(place: float) -> float:
        sigma = round(math.exp(place), 4 - math.floor(place / math.log(10)))  # five digits are enough for a config
        if sigma not in tried:
            tried[sigma] = figure(sigma)
        return tried[sigma]

    left, right = math.log(low), math.log(high)
    while right - left > tolerance:
        first, second = left + (right - left) / 3, right - (right - left) / 3
        if at(first) <= at(second):
            right = second
        else:
            left = first
    at((left + right) / 2)
    return dict(sorted(tried.items()))


def tune(
    figure: Callable[[list[float], bool], float],
    scheduler: ICTScheduler,
    steps: int,
    higher_is_better: bool = False,
    tolerance: float = 0.1,
) -> dict[str, Any]:
    """Search the levels for 2 to `steps` steps one after another, then compare them with those that `scheduler` has.

    Args:
        figure: of all levels of a sampler, descending; True asks for noise that the search does not see, on which the
            old levels and the new are compared.
        scheduler: its first level stays; those between it and the end are searched.

    Returns:
        For the report: "levels", "tried" for each of them, "old_levels" by number of steps, the figures "before" and
        "after" by number of steps, and "adopted", whether the new ones are better in the mean over these numbers.
    """
    config, sign = scheduler.config, -1 if higher_is_better else 1
    top, bottom = config.sigma_max, config.sigma_min
    # Nearer to either end a second step is the first one over again, or none.
    floor, high = 10 * bottom, top / 2
    # The first one is saved as a rho of the stock scheduler.
    reach = [middle_level(config.num_train_timesteps, bottom, top, rho) for rho in (LARGEST_RHO, LEAST_RHO)]
    low, high = max(floor, 1.001 * reach[0]), min(high, 0.999 * reach[1])
    new: list[float] = []
    searches = []
    for _ in range(steps - 1):
        tried = ternary_search(lambda sigma: sign * figure([top, *new, sigma], False), low, high, tolerance)
        searches.append([[sigma, sign * value] for sigma, value in tried.items()])
        new.append(min(tried, key=tried.__getitem__))
        low, high = floor, new[-1] * math.exp(-tolerance)
    old = {str(n): [float(level) for level in scheduler.sampling_sigmas(n)[1:]] for n in range(2, steps + 1)}
    before = {n: figure([top, *levels], True) for n, levels in old.items()}
    after = {n: figure([top, *new[: len(levels)]], True) for n, levels in old.items()}
    return {
        "old_levels": old,
        "levels": new,
        "before": before,
        "after": after,
        "adopted": sign * sum(after.values()) < sign * sum(before.values()),
        "tried": searches,
    }
