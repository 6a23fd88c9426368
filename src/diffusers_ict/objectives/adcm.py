"""ADCM: Adaptive Discretization for Consistency Models (Bai et al., arXiv:2510.17266)."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..formulas.adaptive_grid import adaptive_levels
from ..formulas.noise_schedule import karras_sigmas, lognormal_pair_probabilities
from ..formulas.preconditioning import Told
from .base import bounded, neighbours
from .ect import ECT

FIRST_LEVELS = 11  # of the grid before the network has chosen one: as at the beginning of iCT


class Levels:
    """The noise levels of a run as the network last chose them: part of its state."""

    def __init__(self) -> None:
        self.sigmas: tuple[float, ...] | None = None

    def state(self) -> dict[str, Any]:
        """The levels, or None."""
        return {"sigmas": self.sigmas}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back the levels."""
        self.sigmas = None if state["sigmas"] is None else tuple(state["sigmas"])


@dataclass(frozen=True)
class ADCM(ECT):
    """Pairs of neighbouring levels that the network chooses itself, several times in a run.

    Levels stand close where the output changes fast, and far apart where the target is close to the image. Pairs are
    drawn with iCT's lognormal probabilities, and weighed by the distance of the target from the image. The method is
    made for models that begin as denoisers: from a diffusion model, or after `align_steps` of ECT's alignment.

    Attributes:
        trade_off: lambda of `step_size`; 0.01 for CIFAR-10, and from 0.64 down to 0.01 for ImageNet.
        rebuilds: how often the levels are chosen, at equal distances from the end of the alignment on.
        memory: the levels.
        The others are those of ECT; its stages, q, k and b mean nothing here.
    """

    method: ClassVar[str | None] = "ADCM"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.17266"
    citation: ClassVar[str] = (
        "J. Bai, Z. Feng, Z. Deng, T. Hou, R. C. Qiu, Z. Ling. Adaptive Discretization for Consistency Models. NeurIPS "
        "2025, arXiv:2510.17266."
    )
    dropout: ClassVar[float] = 0.3
    stage_name: ClassVar[tuple[str, str] | None] = ("num_levels", "N")

    huber_c: float = bounded(0.03, at_least=0, below=1e6)
    adaptive_weight: bool = True
    trade_off: float = bounded(0.01, above=0)
    rebuilds: int = bounded(8, at_least=1)
    _: KW_ONLY
    memory: Levels = field(default_factory=Levels, compare=False, repr=False)

    def rebuilds_after(self, step: int, total_steps: int) -> bool:
        """Whether the levels are chosen anew after step k (from 0) of K, for those that follow."""
        period = max(1, (total_steps - self.align_steps) // self.rebuilds)
        done = step + 1 - self.align_steps
        first = max(self.align_steps, 1) - self.align_steps
        return done >= first and (done - first) % period == 0 and step + 1 < total_steps

    def rebuild(
        self, f: Callable, x: Tensor, noise: Tensor, class_labels: Told, total: Callable[[Tensor], Tensor]
    ) -> None:
        """Choose the levels by a batch."""
        ends = self.sigma_min, self.sigma_max
        self.memory.sigmas = tuple(adaptive_levels(f, x, noise, class_labels, self.trade_off, *ends, total).tolist())

    def sample_pair(self, uniform: Tensor, step: int, total_steps: int) -> tuple[Tensor, Tensor]:
        """(sigma, sigma_next): as in ECT's alignment, then neighbours in the levels."""
        if self.denoises(step, total_steps):
            return super().sample_pair(uniform, step, total_steps)
        sigmas = self.memory.sigmas or tuple(karras_sigmas(FIRST_LEVELS, self.sigma_min, self.sigma_max).tolist())
        return neighbours(*_table(sigmas, self.p_mean, self.p_std, uniform.dtype, uniform.device), uniform)

    def schedule(self, step: int, total_steps: int) -> dict[str, float]:
        """The number of levels, once the network has chosen them."""
        self.stage(step, total_steps)  # refuses an alignment that is too long
        chosen = self.memory.sigmas
        return {} if chosen is None or self.denoises(step, total_steps) else {"num_levels": len(chosen)}


@lru_cache(maxsize=2)  # the levels change a few times in a run, and the host is not to send them at every step
def _table(
    sigmas: tuple[float, ...], mean: float, std: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The levels [N] and the cumulative probabilities of their pairs [N - 1], on a device."""
    levels = torch.tensor(sigmas, dtype=torch.float64)
    cumulative = lognormal_pair_probabilities(levels, mean, std).cumsum(0)
    return levels.to(device, dtype), cumulative.to(device, dtype)
