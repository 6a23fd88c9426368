"""Finding the noise levels between sampling steps: ternary search, then greedily one more level.

CM (arXiv:2303.01469), Sec. 3 and Appendix C: the levels of multistep sampling are chosen one after another, each by
ternary search for the best figure, below the ones that are fixed already.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..formulas.noise_schedule import LARGEST_RHO, LEAST_RHO
from ..formulas.stock_grid import middle_level
from ..scheduling_ict import ICTScheduler


@dataclass(frozen=True)
class Found:
    """Outcome of one search.

    Attributes:
        sigma: the best level that was tried.
        figure: of it, lower is better. As the least of many on the same noise it is too good to be reported.
        tried: (level, figure) in the order of the levels.
    """

    sigma: float
    figure: float
    tried: tuple[tuple[float, float], ...]


def ternary_search(figure: Callable[[float], float], low: float, high: float, tolerance: float = 0.1) -> Found:
    """The level between `low` and `high` with the least figure, if the figure falls and then rises in ln(sigma).

    Args:
        figure: of a level; not called twice with the same.
        tolerance: the search ends when the interval is that short in ln(sigma): 0.1 is 10 % of a level.
    """
    known: dict[float, float] = {}

    def at(place: float) -> float:
        sigma = round(math.exp(place), 4 - math.floor(place / math.log(10)))  # five digits are enough for a config
        if sigma not in known:
            known[sigma] = figure(sigma)
        return known[sigma]

    left, right = math.log(low), math.log(high)
    while right - left > tolerance:
        first, second = left + (right - left) / 3, right - (right - left) / 3
        if at(first) <= at(second):
            right = second
        else:
            left = first
    at((left + right) / 2)
    best = min(known, key=known.__getitem__)
    return Found(best, known[best], tuple(sorted(known.items())))


def _below(chosen: list[float], figure: Callable[[list[float]], float]) -> Callable[[float], float]:
    """The figure of one level more, as a function of it."""
    fixed = list(chosen)
    return lambda sigma: figure([*fixed, sigma])


def greedy_levels(
    figure: Callable[[list[float]], float],
    steps: int,
    low: float,
    high: float,
    tolerance: float = 0.1,
    floor: float | None = None,
) -> list[Found]:
    """One search for each step but the first, each level below the ones before.

    Args:
        figure: of a descending list of intermediate levels.
        steps: of the longest sampler, at least 2.
        low, high: bounds of the first level; floor: the lower bound of the others, by default `low`.
    """
    chosen: list[float] = []
    searches: list[Found] = []
    for _ in range(steps - 1):
        found = ternary_search(_below(chosen, figure), low, high, tolerance)
        searches.append(found)
        chosen.append(found.sigma)
        low, high = low if floor is None else floor, found.sigma * math.exp(-tolerance)
    return searches


@dataclass(frozen=True)
class Tuned:
    """The result of a search for levels.

    Attributes:
        levels: intermediate levels found; searches: one for each.
        old_levels: those the scheduler goes through, by number of steps.
        before, after: figure by number of steps, with the old levels and the new, on noise the search did not see.
    """

    levels: list[float]
    searches: list[Found]
    old_levels: dict[int, list[float]]
    before: dict[int, float]
    after: dict[int, float]

    @property
    def improves(self) -> bool:
        """Whether the new levels are better, in the mean over the numbers of steps."""
        return sum(self.after.values()) < sum(self.before.values())

    def as_dict(self, sign: int = 1) -> dict[str, Any]:
        """For the report; `sign` is -1 for a figure of which higher is better, which the search saw negated."""
        return {
            "old_levels": {str(n): levels for n, levels in self.old_levels.items()},
            "levels": self.levels,
            "before": {str(n): sign * value for n, value in self.before.items()},
            "after": {str(n): sign * value for n, value in self.after.items()},
            "adopted": self.improves,
            "tried": [[[sigma, sign * value] for sigma, value in search.tried] for search in self.searches],
        }


def tune(
    figure: Callable[[list[float], bool], float], scheduler: ICTScheduler, steps: int, tolerance: float = 0.1
) -> Tuned:
    """Search the levels for 2 to `steps` steps, then compare them with those that `scheduler` has.

    Args:
        figure: of all levels of a sampler, descending, lower is better; True asks for noise that the search does not
            see, on which the old levels and the new are compared.
        scheduler: its first level stays; those between it and the end are searched.
    """
    top, bottom = scheduler.config.sigma_max, scheduler.config.sigma_min
    # Nearer to either end a second step is the first one over again, or none.
    floor, high = 10 * bottom, top / 2
    # The first one is saved as a rho of the stock scheduler.
    reach = [middle_level(scheduler.config.num_train_timesteps, bottom, top, rho) for rho in (LARGEST_RHO, LEAST_RHO)]
    low, high = max(floor, 1.001 * reach[0]), min(high, 0.999 * reach[1])
    searches = greedy_levels(lambda levels: figure([top, *levels], False), steps, low, high, tolerance, floor)
    levels = [found.sigma for found in searches]
    counts = range(2, steps + 1)
    old = {count: [float(level) for level in scheduler.sampling_sigmas(count)[1:]] for count in counts}
    before = {count: figure([top, *old[count]], True) for count in counts}
    after = {count: figure([top, *levels[: count - 1]], True) for count in counts}
    return Tuned(levels, searches, old, before, after)
