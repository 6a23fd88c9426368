"""What consistency objectives with a discriminator beside them have in common."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..formulas.noise_schedule import act_num_levels
from ..formulas.preconditioning import Told, c_noise
from . import objective_class
from .base import Objective, Pair, bounded
from .ct import CT


def discriminator_logits(
    discriminator: Callable, images: Tensor, sigma: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    """D's logits in float32: images [B, C, H, W] in [-1, 1], sigma [B] -> [B]; > 0 means real."""
    return discriminator(images, c_noise(sigma), class_labels).float()


@dataclass(frozen=True)
class Adversarial(Objective):
    """A consistency objective with a discriminator D beside it: D is a player of its own, and decides nothing here.

    Attributes:
        consistency: compares the outputs of a pair; its levels are those of the adversarial term.
        discriminator_beta1, discriminator_beta2: of D's RAdam.
        normalized: whether D has layers of normalisation.
    """

    normalized: ClassVar[bool] = True
    augmented: ClassVar[bool] = False  # whether what D sees is augmented

    consistency: Objective = CT(levels=act_num_levels)
    discriminator_beta1: float = bounded(0.0, at_least=0, below=1)
    discriminator_beta2: float = bounded(0.99, at_least=0, below=1)

    @classmethod
    def from_settings(cls, /, consistency: str = "ct", **settings: Any) -> "Adversarial":
        """As of any objective; `consistency` is the name of a loss, and settings of none of ours are that one's.

        Raises:
            ValueError: also for a consistency term that there is not.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        ours = {name: value for name, value in settings.items() if name in names}
        theirs = {name: value for name, value in settings.items() if name not in names}
        try:
            term = objective_class(consistency)
        except (KeyError, TypeError):
            term = Adversarial
        if issubclass(term, Adversarial):
            raise ValueError(f"`consistency` must be a loss without a discriminator, such as ct, got {consistency}.")
        try:
            objective = term.from_settings(**theirs)
        except ValueError as error:
            listed = f" can have {', '.join(sorted(names))} ({cls.method}), "
            raise ValueError(str(error).replace(" can have ", listed)) from error
        if isinstance(objective, CT):
            objective = dataclasses.replace(objective, levels=act_num_levels)
        return super().from_settings(consistency=objective, **ours)  # type: ignore[return-value]

    def settings(self) -> dict[str, Any]:
        """Those of this class and of its consistency term, whose name is `consistency`."""
        name = type(self.consistency).__module__.rpartition(".")[2]
        return {**self.consistency.settings(), **super().settings(), "consistency": name}

    def to(self, device: torch.device | str) -> "Adversarial":
        return dataclasses.replace(self, consistency=self.consistency.to(device))

    def first_step(self, total_steps: int) -> int:
        """The optimizer step, from 0, of a run of K steps, from which on D learns and is asked."""
        return 0

    # The consistency term decides all that an objective decides.

    @property
    def memory(self) -> Any:
        return self.consistency.memory

    def rebuilds_after(self, step: int, total_steps: int) -> bool:
        return self.consistency.rebuilds_after(step, total_steps)

    def rebuild(
        self, f: Callable, x: Tensor, noise: Tensor, class_labels: Told, total: Callable[[Tensor], Tensor]
    ) -> None:
        self.consistency.rebuild(f, x, noise, class_labels, total)

    @property
    def stage_name(self) -> tuple[str, str] | None:  # type: ignore[override]
        return self.consistency.stage_name

    def check_images(self, shape: tuple[int, int, int]) -> None:
        self.consistency.check_images(shape)

    def sample_pair(self, uniform: Tensor, step: int, total_steps: int) -> tuple[Tensor, Tensor]:
        return self.consistency.sample_pair(uniform, step, total_steps)

    def distance(self, pair: Pair) -> Tensor:
        return self.consistency.distance(pair)

    def weighting(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return self.consistency.weighting(sigma, sigma_next)

    def teacher_decay(self, step: int, total_steps: int) -> float | None:
        return self.consistency.teacher_decay(step, total_steps)

    def denoises(self, step: int, total_steps: int) -> bool:
        return self.consistency.denoises(step, total_steps)

    def schedule(self, step: int, total_steps: int) -> dict[str, float]:
        return self.consistency.schedule(step, total_steps)

    def mean_weight(self, step: int, total_steps: int) -> float:
        return self.consistency.mean_weight(step, total_steps)
