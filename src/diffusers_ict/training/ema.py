"""Averages of the weights, in float32: exponential ones for samples, power-function ones for snapshots."""

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..formulas.power_ema import power_decay, power_exponent

TRACKED_STDS = (0.05, 0.10)  # of the power-function averages, as in EDM2


def variant_name(decay: float) -> str:
    """0.9999 -> "ema9999": the name of an EMA's weights as a diffusers variant, which may hold no dot."""
    return "ema" + f"{decay:.10f}".rstrip("0").split(".")[1]


def warmed_up_decay(decay: float, step: int) -> float:
    """The decay in step `step` (from 0) of an average that is warmed up: min(decay, (1 + step) / (10 + step))."""
    return min(decay, (1 + step) / (10 + step))


def note_on_equal_averages(decays: Sequence[float], total_steps: int) -> str | None:
    """A sentence where the warm-up holds several decays below their value for the whole run, which makes them one."""
    most = warmed_up_decay(1.0, total_steps - 1)
    held = [f"{decay:g}" for decay in decays if decay >= most]
    if len(held) < 2:
        return None
    return (
        f"The averages of the decays {' and '.join(held)} will be equal, because the warm-up ends at {most:.4g} after "
        f"{total_steps} steps: choose smaller ema_decays, or no ema_warmup."
    )


def move_towards(averages: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) weight, in place, for tensors in the same order."""
    get_ema_multi_avg_fn(decay)(averages, weights, 0)


class Average:
    """A copy of a network whose weights are an average of its weights: average <- beta average + (1 - beta) weights.

    What `torch.optim.swa_utils.AveragedModel` is, but for its walk through all modules at every update, which took 5 %
    of a step of a small network.

    Args:
        net: it begins as a copy of this one, in evaluation mode and without gradients.
        decay_at: beta as a function of the optimizer step, counted from 0.

    Attributes:
        module: the network with the averaged weights, to sample with; steps: optimizer steps done.
    """

    def __init__(self, net: nn.Module, decay_at: Callable[[int], float]) -> None:
        # At 0.9999 a bfloat16 average would never move.
        self.module = copy.deepcopy(net).float().requires_grad_(False).eval()
        self.decay_at, self.steps = decay_at, 0
        self._averages, self._weights = list(self.module.parameters()), [p.detach() for p in net.parameters()]
        self._buffers = list(zip(self.module.buffers(), net.buffers()))

    def update(self) -> None:
        """Move towards the weights after an optimizer step."""
        move_towards(self._averages, [weight.float() for weight in self._weights], self.decay_at(self.steps))
        for here, there in self._buffers:
            here.copy_(there)
        self.steps += 1


def exponential_average(net: nn.Module, decay: float, warmup: bool = False) -> Average:
    """An EMA of the weights.

    Args:
        decay: in [0, 1).
        warmup: use min(decay, (1 + k) / (10 + k)) at step k, so that a run much shorter than 1 / (1 - decay) steps
            averages over its last tenth instead of remembering its initial weights. It leaves long runs as
            published: a decay of 0.9999 is reached at step 90,000.
    """
    return Average(net, lambda step: warmed_up_decay(decay, step) if warmup else decay)


def power_average(net: nn.Module, std: float) -> Average:
    """A power-function average of this standard deviation, as a share of the run, for snapshots. EDM2, Sec. 3."""
    exponent = power_exponent(std)
    return Average(net, lambda step: power_decay(step + 1, exponent))
