"""ECT: Easy Consistency Tuning (Geng et al., Consistency Models Made Easy, arXiv:2406.14548)."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..formulas.noise_schedule import SIGMA_MAX, SIGMA_MIN, ict_weighting
from .base import Objective, Pair, bounded, check_metric, robust_distance

LARGEST_RATIO = 0.999


@dataclass(frozen=True)
class ECT(Objective):
    """No grid: t is lognormal, and r follows from it. The gap t - r shrinks in stages, from denoising on.

        r / t = 1 - n(t) / q^(stage + 1)        n(t) = 1 + k sigmoid(-b t)

    A ratio below 0 is taken as 0, and r is at least sigma_min. There f is the identity, so the target of such a pair is
    the image itself, but for noise of sigma_min. The formula gives every pair this target at stage -1. The steps of
    this alignment train a denoiser, which the stages turn into a consistency model.

    ECT's code does not limit the levels. Here t is between 2 sigma_min and sigma_max, which moves 1.4 % and 0.3 % of
    the draws, and r / t at most 0.999. That code differs in two more ways: its f has no sigma_min in c_skip and c_out
    while it trains, so that f is the identity at 0, and a sigma_min of 0.003 when it samples; and what is not finite in
    targets and gradients becomes a number by `nan_to_num`, where a run ends here. Here, f is the same in training and
    sampling. The weights 1 / (t - r) are those of its CIFAR-10 code; its ImageNet code has 1 / t^2 + 1 / sigma_data^2.

    Attributes:
        q: divides the gap at each stage. Published: 2 for long runs, and 256 for a short one that stays at stage 0.
            Both start from the weights of a diffusion model.
        stage_steps: steps of a stage; None for `stages` of equal length.
        stages: how many there are from the end of the alignment to that of the run, where `stage_steps` is None; 8 as
            in the long run of ECT's authors.
        align_steps: steps of the alignment, before stage 0.
        p_mean, p_std: of ln(t).
        huber_c: constant of the pseudo-Huber distance; 0 for the norm of the difference, as for CIFAR-10.
        adaptive_weight: weigh a pair by 1 / d(target, x) instead, the distance of its target from the image: ADCM (Bai
            et al., arXiv:2510.17266) Eq. 11. Pairs whose r is sigma_min, as in the alignment, keep
            1 / (t - r) where it is less.
        k, b: of n(t), which makes the relative gap larger at small t.
        metric: "pseudo-huber", or "cauchy" for latents (arXiv:2502.01441); cauchy_c: its constant, None for
            0.00054 sqrt(d).
        sigma_min, sigma_max: ends of the noise levels.
    """

    method: ClassVar[str | None] = "ECT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.14548"
    citation: ClassVar[str] = (
        "Z. Geng, A. Pokle, W. Luo, J. Lin, J. Z. Kolter. Consistency Models Made Easy. ICLR 2025, arXiv:2406.14548."
    )
    dropout: ClassVar[float] = 0.2  # released code
    stage_name: ClassVar[tuple[str, str] | None] = ("stage", "stage")

    q: float = bounded(2.0, at_least=1.1, below=1e6)
    stage_steps: int | None = bounded(None, at_least=1)
    stages: int = bounded(8, at_least=1)
    align_steps: int = bounded(0, at_least=0)
    p_mean: float = -1.1
    p_std: float = bounded(2.0, above=0)
    huber_c: float = bounded(0.0, at_least=0, below=1e6)
    adaptive_weight: bool = False
    k: float = bounded(8.0, at_least=0)
    b: float = 1.0
    metric: str = "pseudo-huber"
    cauchy_c: float | None = bounded(None, above=0, below=1e6)
    _: KW_ONLY
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX

    def __post_init__(self) -> None:
        super().__post_init__()
        check_metric(self.metric)

    def stage(self, step: int, total_steps: int) -> int:
        """The stage of step k (from 0) of K: -1 in the alignment. It ends where all ratios are at their largest.

        Raises:
            ValueError: no step comes after the alignment.
        """
        if self.align_steps >= total_steps:
            raise ValueError(
                f"an alignment of {self.align_steps} steps needs a run of more steps, got {total_steps}; lower "
                "`align_steps`."
            )
        done = step - self.align_steps
        if done < 0:
            return -1
        stage = done // self.stage_steps if self.stage_steps else done * self.stages // (total_steps - self.align_steps)
        return min(stage, math.ceil(math.log((1 + self.k / 2) / (1 - LARGEST_RATIO), self.q)) - 1)

    def ratio(self, t: Tensor, stage: int) -> Tensor:
        """r / t, but for the smallest r: same shape as t."""
        n = 1 + self.k * torch.sigmoid(-self.b * t)
        return (1 - n * self.q ** -(stage + 1)).clamp(0, LARGEST_RATIO)

    def sample_pair(self, uniform: Tensor, step: int, total_steps: int) -> tuple[Tensor, Tensor]:
        """(r, t): t lognormal by inverting its cumulative distribution."""
        t = (self.p_mean + self.p_std * torch.special.ndtri(uniform)).exp().clamp(2 * self.sigma_min, self.sigma_max)
        r = (t * self.ratio(t, self.stage(step, total_steps))).clamp(min=self.sigma_min)
        return r, t

    def denoises(self, step: int, total_steps: int) -> bool:
        return self.stage(step, total_steps) < 0

    def distance(self, pair: Pair) -> Tensor:
        return robust_distance(self, pair.student, pair.target)

    def weighting(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return ict_weighting(sigma, sigma_next)

    def mean_weight(self, step: int, total_steps: int) -> float:
        """As of any objective; 1 with adaptive weights, which are not known before the outputs."""
        return 1.0 if self.adaptive_weight else super().mean_weight(step, total_steps)

    def loss(self, pair: Pair) -> Tensor:
        """As of any objective, or with adaptive weights."""
        if not self.adaptive_weight or pair.x is None:
            return super().loss(pair)
        distance = self.distance(pair)
        # 1e-3 keeps it finite where few pixels make the target's distance small.
        adaptive = 1 / (robust_distance(self, pair.target, pair.x) + 1e-3)
        by_gap = self.weighting(pair.sigma, pair.sigma_next).to(distance.dtype)
        at_the_end = pair.sigma < 1.001 * self.sigma_min
        return torch.where(at_the_end, torch.minimum(adaptive, by_gap), adaptive) * distance

    def schedule(self, step: int, total_steps: int) -> dict[str, float]:
        """The stage, and r / t at large t."""
        stage = self.stage(step, total_steps)
        return {"stage": stage, "ratio": min(1 - self.q ** -(stage + 1), LARGEST_RATIO)}
