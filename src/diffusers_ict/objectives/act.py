"""ACT: Adversarial Consistency Training (Kong et al., arXiv:2311.14097).

A discriminator D sees the images that f maps noisy data back to, and an adversarial term is mixed into the loss:

    L_G = (1 - lambda_N(n)) L_CT + lambda_N(n) softplus(-D(f(x_{n+1}, t_{n+1}), t_{n+1}))
    L_D = softplus(D(sg f(x_t, t), t)) + softplus(-D(x', t'))      and every 16th step (gamma / 2) |grad_x D(x', t')|^2

The consistency part is any `Objective`: CT as published, or iCT. All losses are [B]; D sees clean images, and
conditions on the noise level they were mapped back from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softplus

from ..formulas.noise_schedule import karras_ramp, level_dtype
from .adversarial import Adversarial, discriminator_logits
from .base import Objective, Pair, bounded


@dataclass(frozen=True)
class AdversarialWeight:
    """lambda_N(n) = w (n / (N - 1)) ^ log_{1/2}(w_mid / w): 0 at n = 0, w_mid in the middle, w at n = N - 1.

    n is the index of a noise level in the grid; n / (N - 1) is `karras_ramp` of the level itself. ACT Eq. 12; 0.3 / 0.3
    (a constant) on CIFAR-10, 0.6 / 0.2 on ImageNet 64x64 and LSUN Cat.

    Raises:
        ValueError: unless 0 < w_mid <= w <= 1, or both are 0.
    """

    w: float = 0.3
    w_mid: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.w_mid <= self.w <= 1 or self.w == self.w_mid == 0):
            raise ValueError(
                f"the adversarial weights must satisfy 0 < w_mid <= w <= 1 (or both be 0), got w {self.w} and w_mid "
                f"{self.w_mid}."
            )

    def rising(self, sigma: Tensor) -> Tensor:
        """(n / (N - 1)) ^ exponent, from 0 to 1: also a sample's weight in D's losses, if asked for. float32 [B]."""
        exponent = math.log(self.w_mid / self.w, 0.5) if self.w else 0.0
        return (karras_ramp(sigma) ** exponent).float()

    def __call__(self, sigma: Tensor) -> Tensor:
        """lambda_N of noise levels [B]: float32 [B]."""
        return self.w * self.rising(sigma)


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Non-saturating loss softplus(-D(fake)): [B]. ACT Eq. 9."""
    return softplus(-logits_fake)


def discriminator_loss(
    logits_fake: Tensor,
    logits_real: Tensor,
    weight_fake: Tensor | float = 1.0,
    weight_real: Tensor | float = 1.0,
) -> Tensor:
    """softplus(D(fake)) + softplus(-D(real)), each at the weight of its own noise level: [B]. ACT Eq. 10."""
    return weight_fake * softplus(logits_fake) + weight_real * softplus(-logits_real)


def r1_penalty(
    discriminator: Callable,
    images: Tensor,
    sigma: Tensor,
    class_labels: Tensor | None = None,
    gamma: float = 10.0,
) -> Tensor:
    """(gamma / 2) |grad_x D(x, t)|^2 on real images, with a graph to differentiate through: [B].

    The gradient is taken at what D sees: give it the augmented images.
    """
    seen = images.detach().requires_grad_(True)
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        logits = discriminator_logits(discriminator, seen, sigma, class_labels)
        (gradient,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
    return gamma / 2 * gradient.flatten(1).square().sum(1)


def weighted_lerp(objective: Objective, pair: Pair, adversarial: Tensor, weight: Tensor) -> Tensor:
    """lambda(sigma_i) ((1 - lambda_N) d + lambda_N L_adv): [B].

    On CT, whose lambda(sigma) is 1, this is the published L_G. On iCT the mixture is of the unweighted distance, so
    that the adversarial term keeps its share while iCT's weighting grows 128-fold over training.
    """
    mixed = (1 - weight) * objective.distance(pair) + weight * adversarial
    return objective.weighting(pair.sigma, pair.sigma_next).to(mixed.dtype) * mixed


class AdaptiveStrength:
    """ACT-Aug: the strength p of the augmentation, driven by a running sign r of overfitting against tau.

    r <- 0.93 r + 0.07 signal;  p <- clip(p +- images_seen / horizon, 0, 1), plus when r > tau. The signal of ACT
    (Sec. 4.3) is the gradient penalty R1, which rises as a discriminator overfits; that of ADA (arXiv:2006.06676,
    Eq. 1) is the mean sign of D's logits on real images.

    Args:
        tau: threshold of r. r hardly ever reaches the released code's 1e4, so p stays at 0.
        horizon: images after which p could have gone from 0 to 1.
        device: where p and r are, numbers that the host does not wait for.

    Raises:
        ValueError: tau or horizon not positive.
    """

    def __init__(self, tau: float, horizon: int = 500_000, device: torch.device | str = "cpu") -> None:
        if tau <= 0 or horizon <= 0:
            raise ValueError(f"tau and horizon of the augmentation must be positive, got {tau} and {horizon}.")
        self.tau, self.horizon = tau, horizon
        self.p = torch.zeros((), dtype=level_dtype(device), device=device)
        self.r = torch.zeros_like(self.p)

    def state(self) -> dict[str, float]:
        """Strength p, running signal r and threshold tau, by the names they are logged under. Waits for the device."""
        return {"augment_p": self.p.item(), "augment_r": self.r.item(), "augment_tau": self.tau}

    def load_state(self, state: dict[str, float]) -> None:
        """Put back p and r; tau and horizon are settings."""
        self.p.fill_(state["augment_p"])
        self.r.fill_(state["augment_r"])

    def update(self, signal: Tensor | float, images_seen: int) -> None:
        """Move p by a new value of the signal, `images_seen` images (of both networks) after the last one."""
        self.r.mul_(0.93).add_(0.07 * signal)
        change = images_seen / self.horizon
        self.p.add_(torch.where(self.r > self.tau, change, -change)).clamp_(0, 1)


SIGNALS = {"penalty": 0.05, "sign": 0.6}  # what drives the augmentation, and the threshold where none is set


@dataclass(frozen=True)
class ACT(Adversarial):
    """A consistency objective with a discriminator beside it: CT as published, or any other.

    Attributes:
        adversarial_weight, adversarial_weight_mid: w and w_mid of `AdversarialWeight`.
        discriminator_time_weight: weight D's losses by noise level too, as for ImageNet and LSUN.
        r1_gamma, r1_interval: weight of the gradient penalty, and steps between two of them.
        augment: augment what D sees (ACT-Aug).
        augment_signal: that drives the strength: "penalty", R1 as in ACT, or "sign", the mean sign of D's logits on
            images, as in ADA (arXiv:2006.06676, Eq. 1).
        augment_tau: signal above which augmentation grows; None for 0.05 of the penalty, 0.6 of the sign.
        augment_horizon: images over which its strength could go from 0 to 1.

    Raises:
        ValueError: a setting out of its bounds.
    """

    method: ClassVar[str | None] = "ACT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.14097"
    citation: ClassVar[str] = (
        "F. Kong et al. ACT-Diffusion: Efficient Adversarial Consistency Training. CVPR 2024, arXiv:2311.14097."
    )
    betas: ClassVar[tuple[float, float]] = (0.0, 0.99)

    adversarial_weight: float = 0.3
    adversarial_weight_mid: float = 0.3
    discriminator_time_weight: bool = False
    discriminator_beta2: float = bounded(0.9318, at_least=0, below=1)
    r1_gamma: float = bounded(10.0, at_least=0)
    r1_interval: int = bounded(16, at_least=1)
    augment: bool = False
    augment_signal: str = "penalty"
    augment_tau: float | None = bounded(None, above=0)
    augment_horizon: int = bounded(500_000, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment_signal not in SIGNALS:
            raise ValueError(f"`augment_signal` must be one of {', '.join(SIGNALS)}, got {self.augment_signal}.")
        AdversarialWeight(self.adversarial_weight, self.adversarial_weight_mid)

    @property
    def augmented(self) -> bool:  # type: ignore[override]
        return self.augment

    @property
    def weight(self) -> AdversarialWeight:
        """lambda_N."""
        return AdversarialWeight(self.adversarial_weight, self.adversarial_weight_mid)

    def strength(self, device: torch.device | str) -> AdaptiveStrength | None:
        """The strength of the augmentation at the beginning of a run; None without augmentation."""
        tau = SIGNALS[self.augment_signal] if self.augment_tau is None else self.augment_tau
        return AdaptiveStrength(tau, self.augment_horizon, device) if self.augment else None
