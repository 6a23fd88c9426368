"""Consistency training against a relativistic discriminator, whose gradient has a fixed share of the whole.

D compares a sample with an image of the same level and class, and has no layers of normalisation:

    L_D = softplus(D(f) - D(x)) + R1 + R2 + c (D(x) + D(f))^2        L_G = L_CT + s softplus(D(x) - D(f))

R1 and R2 are gamma / 2 times the squared gradient of D at images and at samples, measured by finite differences; s is
such that the gradient of the adversarial term, at the output of f, has a given share of the norm of L_CT's.

The loss and its penalties are those of R3GAN (Huang et al., arXiv:2501.05441). Finite differences come from APT (Lin et
al., arXiv:2501.08316), the balance of gradients from adversarial flow models (Lin et al., arXiv:2511.22475). None of
them trains a consistency model from data.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from ..formulas.noise_schedule import karras_ramp
from .adversarial import Adversarial
from .base import bounded


def relativistic_loss(logits: Tensor, others: Tensor) -> Tensor:
    """softplus(others - logits): small where `logits` are above those of their partners. [B] -> [B]. R3GAN Eq. 2."""
    return softplus(others - logits)


def gradient_penalty(moved: Tensor, logits: Tensor, gamma: float, epsilon: float) -> Tensor:
    """An estimate of (gamma / 2) |grad_x D(x)|^2 from D(x + epsilon n) and D(x), n ~ N(0, I): [B] -> [B].

    Its mean over n is the penalty itself as epsilon becomes small; it has no second derivatives.
    """
    return gamma / 2 * ((moved - logits) / epsilon).square()


@dataclass(frozen=True)
class Relativistic(Adversarial):
    """A consistency objective with a relativistic discriminator beside it, in the last part of a run.

    Attributes:
        share: of the norm of the consistency term's gradient that the adversarial one has, at the output of f.
        share_exponent: a sample's part in it is (n / (N - 1)) ^ exponent, n its place among the levels; 0 for all
            alike. By default log2(3), as ACT's weights of ImageNet.
        start: share of the run before D begins.
        gamma: of the penalties R1 and R2; epsilon: of their finite differences.
        penalized: share of a micro batch that they are measured on.
        centring: weight of the squared sum of paired logits, which the loss leaves free.

    Raises:
        ValueError: a setting out of its bounds.
    """

    method: ClassVar[str | None] = "relativistic ACT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2501.05441"
    citation: ClassVar[str] = (
        "Y. Huang, A. Gokaslan, V. Kuleshov, J. Tompkin. The GAN is dead; long live the GAN! A Modern GAN Baseline. "
        "NeurIPS 2024, arXiv:2501.05441."
    )
    normalized: ClassVar[bool] = False

    share: float = bounded(0.3, at_least=0)
    share_exponent: float = bounded(math.log2(3), at_least=0)
    start: float = bounded(0.8, at_least=0, below=1)
    gamma: float = bounded(0.5, at_least=0)
    epsilon: float = bounded(0.01, above=0)
    penalized: float = bounded(0.25, at_least=0)
    centring: float = bounded(0.01, at_least=0)

    @property
    def betas(self) -> tuple[float, float]:  # type: ignore[override]
        return self.consistency.betas

    @property
    def dropout(self) -> float:  # type: ignore[override]
        return self.consistency.dropout

    def first_step(self, total_steps: int) -> int:
        return round(self.start * total_steps)

    def weight(self, sigma: Tensor) -> Tensor:
        """The part of samples at these levels in the adversarial term: float32 [B], between 0 and 1."""
        return (karras_ramp(sigma) ** self.share_exponent).float()
