"""CT: consistency training (Song et al., arXiv:2303.01469), the baseline that iCT and ACT improve on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formulas.distances import squared_l2
from ..formulas.noise_schedule import ct_num_levels, ct_teacher_decay, uniform_pair_probabilities
from .base import GridObjective, Pair


@dataclass(frozen=True)
class CT(GridObjective):
    """EMA teacher, uniform noise levels, weight 1, square root N (Sec. 5 and Appendix C).

    Attributes:
        s0, s1: levels at the start and pairs at the end.
        mu0: sets the decay of the teacher's EMA, see `ct_teacher_decay` (0.9 on CIFAR-10, 0.95 on ImageNet 64x64).
        metric: ([B, C, H, W], [B, C, H, W]) -> [B]; squared L2, or an LPIPS object for the published setting.
        levels: (step, total steps, s0, s1) -> N(k); `act_num_levels` for the schedule of ACT's released code.
    """

    s0: int = 2
    s1: int = 150
    mu0: float = 0.9
    metric: Callable[[Tensor, Tensor], Tensor] = squared_l2
    levels: Callable[[int, int, int, int], int] = ct_num_levels

    def num_levels(self, step: int, total_steps: int) -> int:
        return self.levels(step, total_steps, self.s0, self.s1)

    def pair_probabilities(self, sigmas: Tensor) -> Tensor:
        return uniform_pair_probabilities(sigmas)

    def distance(self, pair: Pair) -> Tensor:
        return self.metric(pair.student, pair.target)

    def weighting(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def teacher_decay(self, step: int, total_steps: int) -> float | None:
        return ct_teacher_decay(self.num_levels(step, total_steps), self.s0, self.mu0)
