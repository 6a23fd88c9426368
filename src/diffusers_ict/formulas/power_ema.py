"""Power-function averages of weights, and averages of any other length made of their snapshots afterwards.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2, arXiv:2312.02696), Sec. 3 and
Appendix C. The average after t steps weighs the weights of step tau by tau^exponent: it always covers the same share of
the run, whose standard deviation names it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Profile = tuple[int, float]  # (steps done, exponent)


def power_exponent(std: float) -> float:
    """The exponent of the average whose profile has this standard deviation, as a share of the run. EDM2, Alg. 2.

    Raises:
        ValueError: a deviation that no profile has: they lie between 0 and 0.289, that of the plain mean.
    """
    if not 0 < std < relative_std(0):
        raise ValueError(f"the relative standard deviation of an average must be between 0 and 0.289, got {std}.")
    # The one root above 0 of (exponent + 2)^2 (exponent + 3) = (exponent + 1) / std^2, which has one sign change.
    low, high = 0.0, 1 / std
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if relative_std(middle) < std else (middle, high)
    return low


def relative_std(exponent: float) -> float:
    """The standard deviation of a profile, as a share of the run: EDM2, Eq. 3."""
    return math.sqrt(exponent + 1) / ((exponent + 2) * math.sqrt(exponent + 3))


def power_decay(steps: int, exponent: float) -> float:
    """beta of average <- beta average + (1 - beta) weights after so many steps: EDM2, Eq. 2. It is 0 at the first."""
    return (1 - 1 / steps) ** (exponent + 1)


def inner_product(a: Profile, b: Profile) -> float:
    """The integral of the product of two profiles: EDM2, Alg. 3."""
    (earlier, low), (later, high) = sorted((a, b))
    # In logarithms: powers of a ratio of steps underflow.
    exponent = (low + 1) * (high + 1) / (low + high + 1) / later
    return exponent * math.exp(high * math.log(earlier / later))


def reconstruction(snapshots: Sequence[Profile], wanted: Profile) -> tuple[Tensor, float]:
    """How to make an average of snapshots of others: EDM2, Alg. 3, and the division by the sum of its code.

    Without that division few snapshots would shrink what all weights have in common: 4 sum to 0.91.

    Args:
        snapshots: (steps done, exponent) of each.
        wanted: the same of the average that is wanted.

    Returns:
        (the weight of each snapshot, float64 [n] with the sum 1; the distance of the profile they make from the wanted
        one, as a share of the norm of that).
    """
    products = torch.tensor([[inner_product(a, b) for b in snapshots] for a in snapshots], dtype=torch.float64)
    shared = torch.tensor([inner_product(a, wanted) for a in snapshots], dtype=torch.float64)
    # Neighbouring snapshots are nearly alike, so the smallest solution is taken.
    weights = torch.linalg.lstsq(products, shared[:, None], driver="gelsd").solution[:, 0]
    weights = weights / weights.sum()
    left = inner_product(wanted, wanted) - 2 * weights @ shared + weights @ products @ weights
    return weights, math.sqrt(max(left.item(), 0.0) / inner_product(wanted, wanted))
