"""CT: consistency training (Song et al., arXiv:2303.01469), the baseline that iCT and ACT improve on."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..formulas.distances import squared_l2
from ..formulas.noise_schedule import ct_num_levels, ct_teacher_decay, uniform_pair_probabilities
from .base import GridObjective, Pair, bounded, converted
from .lpips import LPIPS, POOLINGS

LPIPS_SETTINGS: dict[str, type] = {"lpips_below": int, "lpips_pooling": str, "lpips_clip_target": bool}


@dataclass(frozen=True)
class CT(GridObjective):
    """EMA teacher, uniform noise levels, weight 1, square root N (Sec. 5 and Appendix C).

    Attributes:
        s0, s1: levels at the start and pairs at the end.
        mu0: sets the decay of the teacher's EMA, see `ct_teacher_decay` (0.9 on CIFAR-10, 0.95 on ImageNet 64x64).
        metric: (student, target), [B, C, H, W] each, -> [B]; squared L2, or an LPIPS object as published.
        levels: (step, total steps, s0, s1) -> N(k); `act_num_levels` for the schedule of ACT's released code.

    Raises:
        ValueError: a setting out of its bounds.
    """

    method: ClassVar[str | None] = "CT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2303.01469"
    citation: ClassVar[str] = (
        "Y. Song, P. Dhariwal, M. Chen, I. Sutskever. Consistency Models. ICML 2023, arXiv:2303.01469."
    )
    further_settings: ClassVar[tuple[str, ...]] = ("metric", "lpips_weights", *LPIPS_SETTINGS)

    s0: int = bounded(2, at_least=1, below=1e6)
    s1: int = bounded(150, at_least=1, below=1e6)
    mu0: float = bounded(0.9, above=0, below=1)
    metric: Callable[[Tensor, Tensor], Tensor] = squared_l2
    levels: Callable[[int, int, int, int], int] = ct_num_levels

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s1 < self.s0:
            raise ValueError(f"`s1` must be at least `s0`, got s1 {self.s1} and s0 {self.s0}.")

    @classmethod
    def from_settings(cls, /, metric: str = "l2", lpips_weights: str | None = None, **settings: Any) -> "CT":
        """As of any objective; here `metric` is "l2" or "lpips".

        Args:
            lpips_weights: a safetensors file of LPIPS's networks; by default the installed package `lpips` gives them.
            settings: `lpips_below`, `lpips_pooling` and `lpips_clip_target` are arguments of `LPIPS`, without effect
                where the metric is another.

        Raises:
            ValueError: also for weights that are missing or cannot be used.
        """
        if metric not in ("l2", "lpips"):
            raise ValueError(f"`metric` must be l2 or lpips, got {metric}.")
        given = {name: settings.pop(name) for name in LPIPS_SETTINGS if name in settings}
        options = {
            name.removeprefix("lpips_"): converted(name, value, LPIPS_SETTINGS[name]) for name, value in given.items()
        }
        objective = cast(CT, super().from_settings(**settings))
        if metric == "l2":
            return objective
        return dataclasses.replace(objective, metric=_load_lpips(lpips_weights, options))

    def settings(self) -> dict[str, Any]:
        """As of any objective, without what is read from files."""
        numbers = {name: value for name, value in super().settings().items() if not callable(value)}
        if not isinstance(self.metric, LPIPS):
            return {**numbers, "metric": "l2"}
        return {**numbers, "metric": "lpips", **{f"lpips_{name}": v for name, v in self.metric.settings().items()}}

    def to(self, device: torch.device | str) -> "CT":
        return dataclasses.replace(self, metric=self.metric.to(device)) if isinstance(self.metric, LPIPS) else self

    def check_images(self, shape: tuple[int, int, int]) -> None:
        if isinstance(self.metric, LPIPS) and shape[0] not in (1, 3):
            raise ValueError(
                f"`metric` lpips compares images of 1 or 3 channels, got {shape[0]}; convert them with `image_mode`, "
                "or use `metric` l2."
            )

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


def _load_lpips(weights: str | None, options: dict[str, Any]) -> LPIPS:
    if (pooling := options.get("pooling", "max")) not in POOLINGS:
        raise ValueError(f"`lpips_pooling` must be {' or '.join(POOLINGS)}, got {pooling}.")
    try:
        return LPIPS.from_package(**options) if weights is None else LPIPS.from_safetensors(str(weights), **options)
    except ImportError as error:
        raise ValueError("`metric` lpips needs `lpips_weights` FILE, or the package: pip install lpips.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"`lpips_weights` cannot be used: {error}") from error
