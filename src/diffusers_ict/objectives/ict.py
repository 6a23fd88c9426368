"""iCT: Improved Techniques for Training Consistency Models (Song & Dhariwal, arXiv:2310.14189)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..formulas.noise_schedule import ict_num_levels, ict_weighting, lognormal_pair_probabilities
from .base import GridObjective, Pair, bounded, check_metric, robust_distance


@dataclass(frozen=True)
class ICT(GridObjective):
    """No teacher EMA, pseudo-Huber distance, lognormal noise levels, weight 1 / (sigma_{i+1} - sigma_i), doubling N.

    The student is its own teacher: with a lagging one, the leading term of (student - target) / (sigma_{i+1} - sigma_i)
    is the lag, which says nothing about the data and diverges as the grid is refined (Sec. 3.2).

    Attributes:
        s0, s1: pairs of the grid at the first and the last stage (Eq. 11).
        p_mean, p_std: of ln(sigma) when levels are drawn (Eq. 10).
        huber_c: constant of the pseudo-Huber distance; None for 0.00054 sqrt(d).
        metric: "pseudo-huber", or "cauchy" for latents (arXiv:2502.01441); cauchy_c: its constant, None for the same.

    Raises:
        ValueError: a setting out of its bounds.
    """

    method: ClassVar[str | None] = "iCT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.14189"
    citation: ClassVar[str] = (
        "Y. Song, P. Dhariwal. Improved Techniques for Training Consistency Models. ICLR 2024, arXiv:2310.14189."
    )
    dropout: ClassVar[float] = 0.3  # Sec. 3.1, CIFAR-10

    s0: int = bounded(10, at_least=1, below=1e6)
    s1: int = bounded(1280, at_least=1, below=1e6)
    p_mean: float = -1.1
    p_std: float = bounded(2.0, above=0)
    huber_c: float | None = bounded(None, at_least=0, below=1e6)
    metric: str = "pseudo-huber"
    cauchy_c: float | None = bounded(None, above=0, below=1e6)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_metric(self.metric)
        if self.s1 < self.s0:
            raise ValueError(f"`s1` must be at least `s0`, got s1 {self.s1} and s0 {self.s0}.")

    def num_levels(self, step: int, total_steps: int) -> int:
        return ict_num_levels(step, total_steps, self.s0, self.s1)

    def pair_probabilities(self, sigmas: Tensor) -> Tensor:
        return lognormal_pair_probabilities(sigmas, self.p_mean, self.p_std)

    def distance(self, pair: Pair) -> Tensor:
        return robust_distance(self, pair.student, pair.target)

    def weighting(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return ict_weighting(sigma, sigma_next)
