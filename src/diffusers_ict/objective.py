"""What every consistency objective shares: a pair of neighbouring points on one noise ray, and four decisions about it.

A new objective is one new file with one subclass of `Objective`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .preconditioning import ConsistencyFunction, per_image


@dataclass(frozen=True)
class Pair:
    """The outputs at two neighbouring noise levels, with one noise and one dropout mask for both.

    Attributes:
        student: f_theta(x + sigma_next z, sigma_next), [B, C, H, W], carries the gradient.
        target: f_theta-(x + sigma z, sigma), [B, C, H, W], no gradient.
        sigma, sigma_next: the less and the more noisy level, [B].
    """

    student: Tensor
    target: Tensor
    sigma: Tensor
    sigma_next: Tensor


@contextmanager
def dropout_masks(seed: int, device: torch.device):
    """Inside, dropout draws the masks that belong to `seed`; outside, the global generators are as they were."""
    # fork_rng always keeps the CPU's generator; it can keep no generator on MPS, which has one for all.
    devices = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def consistency_pair(
    f: ConsistencyFunction | Callable,
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    class_labels: Tensor | None = None,
    *,
    dropout_seed: int = 0,
    teacher: ConsistencyFunction | Callable | None = None,
) -> Pair:
    """Evaluate student and teacher on one noise ray. iCT (arXiv:2310.14189) Eq. 6, CT Eq. 10.

    Args:
        f: the consistency function in training; called as f(x, sigma, class_labels).
        x: images in [-1, 1], [B, C, H, W]; noise: standard normal, same shape.
        sigma, sigma_next: [B], sigma < sigma_next.
        class_labels: [B] or None.
        dropout_seed: both evaluations use the masks of this seed.
        teacher: the function that gives the target; by default f itself, in the mode f is in, without gradient.
    """
    noisier = x + per_image(sigma_next, x) * noise
    cleaner = x + per_image(sigma, x) * noise
    with dropout_masks(dropout_seed, x.device):
        student = f(noisier, sigma_next, class_labels)
    with dropout_masks(dropout_seed, x.device), torch.no_grad():
        target = (teacher or f)(cleaner, sigma, class_labels)
    return Pair(student, target, sigma, sigma_next)


class Objective(ABC):
    """The decisions that tell one consistency objective from another."""

    @abstractmethod
    def num_levels(self, step: int, total_steps: int) -> int:
        """N(k): how many noise levels the grid has at optimizer step k (from 0) of K."""

    @abstractmethod
    def pair_probabilities(self, sigmas: Tensor) -> Tensor:
        """p(i): how often each pair of neighbours is drawn. sigmas [N] -> [N - 1], sums to 1."""

    @abstractmethod
    def distance(self, pair: Pair) -> Tensor:
        """d(student, target), unweighted: [B]."""

    @abstractmethod
    def weighting(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """lambda(sigma_i) of a pair: same shape as sigma."""

    def teacher_decay(self, num_levels: int) -> float | None:
        """Decay of the teacher's EMA at this N, or None when the student is its own teacher."""
        return None

    def loss(self, pair: Pair) -> Tensor:
        """lambda(sigma_i) d(student, target): [B]."""
        distance = self.distance(pair)
        return self.weighting(pair.sigma, pair.sigma_next).to(distance.dtype) * distance
