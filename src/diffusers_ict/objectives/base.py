"""Consistency objectives: a pair of neighbouring points on one noise ray, and the decisions about it.

A new objective is one new file with one subclass of `Objective`, or of `GridObjective` where its noise levels come from
a grid. A line in `objectives/__init__.py` makes it a choice of `--loss`.
"""

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..formulas.distances import cauchy, pseudo_huber
from ..formulas.dropout import reuse_masks
from ..formulas.noise_schedule import RHO, SIGMA_MAX, SIGMA_MIN, karras_sigmas
from ..formulas.posterior_mean import towards_mean
from ..formulas.preconditioning import ConsistencyFunction, Told, per_image
from ..settings import check_bounds, setting


@dataclass(frozen=True)
class Pair:
    """The outputs at two neighbouring noise levels, with one noise and one dropout mask for both.

    Attributes:
        student: f_theta(x + sigma_next z, sigma_next), [B, C, H, W], carries the gradient.
        target: f_theta-(x + sigma z, sigma), [B, C, H, W], no gradient.
        sigma, sigma_next: the less and the more noisy level, [B].
        x: the image, where it is known, [B, C, H, W].
    """

    student: Tensor
    target: Tensor
    sigma: Tensor
    sigma_next: Tensor
    x: Tensor | None = None


def consistency_pair(
    f: ConsistencyFunction | Callable,
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    class_labels: Told = None,
    *,
    teacher: ConsistencyFunction | Callable | None = None,
    mean: Tensor | None = None,
) -> Pair:
    """Evaluate student and teacher on one noise ray. iCT (arXiv:2310.14189) Eq. 6, CT Eq. 10.

    Args:
        f: the consistency function in training; called as f(x, sigma, class_labels).
        x: images in [-1, 1], [B, C, H, W]; noise: standard normal, same shape.
        sigma, sigma_next: [B], sigma < sigma_next.
        class_labels: [B], a `Condition`, or None.
        teacher: the function that gives the target; by default f itself, in the mode f is in, without gradient. It
            drops the same units; a network of its own that drops out must be prepared by `share_dropout`.
        mean: `posterior_mean` of the noisier points, [B, C, H, W]; the cleaner ones then lie on the way to it, instead
            of on the way to x.
    """
    noisier = x + per_image(sigma_next, x) * noise
    cleaner = x + per_image(sigma, x) * noise
    if mean is not None:
        cleaner = towards_mean(cleaner, x, mean, sigma, sigma_next)
    student = f(noisier, sigma_next, class_labels)
    with reuse_masks(), torch.no_grad():
        target = (teacher or f)(cleaner, sigma, class_labels)
    return Pair(student, target, sigma, sigma_next, x)


METRICS = ("pseudo-huber", "cauchy")


def robust_distance(objective: Any, a: Tensor, b: Tensor) -> Tensor:
    """The distance that an objective's `metric` names, with its constant: [B, ...] x [B, ...] -> [B]."""
    if objective.metric == "cauchy":
        return cauchy(a, b, objective.cauchy_c)
    return pseudo_huber(a, b, objective.huber_c)


def check_metric(metric: str) -> None:
    """Raise ValueError for a distance that there is not."""
    if metric not in METRICS:
        raise ValueError(f"`metric` must be {' or '.join(METRICS)}, got {metric}.")


bounded = partial(setting, help="")  # a field of an objective whose number has bounds


class Objective(ABC):
    """A consistency objective: its noise levels, distance, weighting and teacher.

    A built-in one is a frozen dataclass, whose fields are the settings of the method. Its class says what it is:

    Attributes:
        method: its name as people write it, or None; paper: its address; citation: of the paper.
        dropout: published dropout of the network, for UNets whose config states none.
        betas: of RAdam, as published.
        stage_name: the entry of `schedule` that numbers its stages, and its symbol in plots; or None.
        further_settings: those of `from_settings` that are no fields.
        memory: what changes as a run goes on, which checkpoints hold, with `state()` and `load_state()`; or None.
    """

    method: ClassVar[str | None] = None
    paper: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    dropout: ClassVar[float] = 0.0
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    stage_name: ClassVar[tuple[str, str] | None] = None
    further_settings: ClassVar[tuple[str, ...]] = ()
    memory: Any = None

    def __post_init__(self) -> None:
        if dataclasses.is_dataclass(self):
            check_bounds(self)

    @classmethod
    def from_settings(cls, /, **settings: Any) -> "Objective":
        """The objective of a recipe's settings: plain YAML types, by the names of the fields.

        Raises:
            ValueError: a name that is not a setting of this objective, or a value that is not allowed.
        """
        fields = {item.name: item for item in _fields(cls) if not callable(item.default)}
        for name, value in settings.items():
            if name not in fields:
                names = ", ".join([*fields, *cls.further_settings])
                raise ValueError(f"`objective` of {cls.__name__} can have {names}, got {name}.")
            settings[name] = converted(name, value, fields[name].type)
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """All settings by name, in plain JSON types: what `from_settings` takes.

        Without the metric of iCT and its kin where it is as published, and the constant of another one, as in
        checkpoints of before there was a choice.
        """
        settings = {item.name: getattr(self, item.name) for item in _fields(self)}
        idle = ("metric", "cauchy_c") if settings.get("metric") == METRICS[0] else ()
        return {name: value for name, value in settings.items() if name not in idle}

    def to(self, device: torch.device | str) -> "Objective":
        """The objective, with what it keeps on a device; most keep nothing there."""
        return self

    def check_images(self, shape: tuple[int, int, int]) -> None:  # noqa: B027 - most compare images of any shape
        """Check that the distance can compare images of this shape, (C, H, W).

        Raises:
            ValueError: it cannot.
        """

    @abstractmethod
    def sample_pair(self, uniform: Tensor, step: int, total_steps: int) -> tuple[Tensor, Tensor]:
        """The noise levels of a batch at optimizer step k (from 0) of K.

        Args:
            uniform: independent uniform numbers in [0, 1), one for each sample: float64 [B].
            step, total_steps: k and K.

        Returns:
            (sigma, sigma_next), float64 [B] each on the device of `uniform`; sigma < sigma_next.
        """

    @abstractmethod
    def distance(self, pair: Pair) -> Tensor:
        """d(student, target), unweighted: [B]."""

    @abstractmethod
    def weighting(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """lambda(sigma_i) of a pair: same shape as sigma."""

    def teacher_decay(self, step: int, total_steps: int) -> float | None:
        """Decay of the teacher's EMA at step k of K, or None when the student is its own teacher."""
        return None

    def denoises(self, step: int, total_steps: int) -> bool:
        """Whether sigma is sigma_min in all pairs of step k of K. Then f is the identity, and no teacher is asked."""
        return False

    def rebuilds_after(self, step: int, total_steps: int) -> bool:
        """Whether `rebuild` is called after step k (from 0) of K."""
        return False

    def rebuild(  # noqa: B027 - most choose nothing while they train
        self, f: Callable, x: Tensor, noise: Tensor, class_labels: Told, total: Callable[[Tensor], Tensor]
    ) -> None:
        """Change what the objective keeps in its `memory`, by a batch of the step.

        Args:
            f: the teacher's consistency function.
            x, noise: [B, C, H, W]; class_labels: [B], a `Condition`, or None.
            total: adds up a tensor over all processes.
        """

    def schedule(self, step: int, total_steps: int) -> dict[str, float]:
        """The state of the curriculum at step k of K, by names for the log; {} if nothing changes."""
        return {}

    def mean_weight(self, step: int, total_steps: int) -> float:
        """Mean of `weighting` over the pairs drawn at step k of K; losses divided by it compare across steps."""
        uniform = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
        return self.weighting(*self.sample_pair(uniform, step, total_steps)).mean().item()

    def loss(self, pair: Pair) -> Tensor:
        """lambda(sigma_i) d(student, target): [B]."""
        distance = self.distance(pair)
        return self.weighting(pair.sigma, pair.sigma_next).to(distance.dtype) * distance


@dataclass(frozen=True)
class GridObjective(Objective):
    """An objective whose pairs are neighbours in a Karras grid of N(k) levels, drawn with probabilities p(i).

    Attributes:
        sigma_min, sigma_max, rho: of the grid.
    """

    stage_name: ClassVar[tuple[str, str] | None] = ("num_levels", "N")

    _: KW_ONLY
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    rho: float = RHO

    @abstractmethod
    def num_levels(self, step: int, total_steps: int) -> int:
        """N(k): how many noise levels the grid has at optimizer step k (from 0) of K."""

    @abstractmethod
    def pair_probabilities(self, sigmas: Tensor) -> Tensor:
        """p(i): how often each pair of neighbours is drawn. sigmas [N] -> [N - 1], sums to 1."""

    def grid(self, step: int, total_steps: int) -> Tensor:
        """The noise levels at step k of K: ascending, float64 [N]."""
        return self._grid_of(self.num_levels(step, total_steps))

    def _grid_of(self, num_levels: int) -> Tensor:
        return karras_sigmas(num_levels, self.sigma_min, self.sigma_max, self.rho)

    def sample_pair(self, uniform: Tensor, step: int, total_steps: int) -> tuple[Tensor, Tensor]:
        """Neighbours (sigmas[i], sigmas[i + 1]), i drawn from p(i) by inverting its cumulative sums."""
        sigmas, cumulative = _table(self, self.num_levels(step, total_steps), uniform.dtype, uniform.device)
        return neighbours(sigmas, cumulative, uniform)

    def schedule(self, step: int, total_steps: int) -> dict[str, float]:
        """N(k)."""
        return {"num_levels": self.num_levels(step, total_steps)}

    def mean_weight(self, step: int, total_steps: int) -> float:
        """sum_i p(i) lambda(sigma_i)."""
        sigmas = self.grid(step, total_steps)
        return (self.pair_probabilities(sigmas) * self.weighting(sigmas[:-1], sigmas[1:])).sum().item()


def neighbours(sigmas: Tensor, cumulative: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (sigmas[i], sigmas[i + 1]), i drawn by inverting cumulative probabilities.

    Args:
        sigmas: ascending, [N]; cumulative: of the N - 1 pairs; uniform: in [0, 1), [B].
    """
    # The last sum is 1 up to rounding; no uniform number may fall beyond it.
    pairs = torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(sigmas) - 2)
    return sigmas[pairs], sigmas[pairs + 1]


def _fields(objective: Any) -> list[dataclasses.Field]:
    """The settings of an objective; the ends and the curvature of its noise levels follow from the scheduler."""
    fields = dataclasses.fields(objective) if dataclasses.is_dataclass(objective) else ()
    return [item for item in fields if not item.kw_only]


def converted(name: str, value: Any, annotation: Any) -> Any:
    """A setting of a recipe in the type of its field, where that is a number or a switch."""
    kinds = typing.get_args(annotation) or (annotation,)
    if value is None and types.NoneType in kinds:
        return None
    kind = next((kind for kind in (bool, int, float) if kind in kinds), None)
    if kind is float and type(value) is int:
        return float(value)
    if kind is not None and type(value) is not kind:
        words = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise ValueError(f"`{name}` must be {words}, got {value!r}.")
    return value


@lru_cache(maxsize=4)  # N changes a few times in a run, and the host is not to send the same grid at every step
def _table(
    objective: GridObjective, num_levels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The grid of N levels [N] and the cumulative probabilities of its pairs [N - 1], on a device."""
    sigmas = objective._grid_of(num_levels)
    cumulative = objective.pair_probabilities(sigmas).cumsum(0)
    return sigmas.to(device, dtype), cumulative.to(device, dtype)
