"""Exponential moving averages of the weights, several decays at once, in float32."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..formulas.power_ema import power_decay, power_exponent

TRACKED_STDS = (0.05, 0.10)  # as in EDM2


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
        f"{total_steps} steps: choose smaller --ema_decays, or --no-ema_warmup."
    )


@torch.no_grad()
def move_towards(averages: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) weight, in place, for tensors in the same order."""
    torch._foreach_lerp_(list(averages), list(weights), 1 - decay)


class EMA:
    """shadow <- decay_k shadow + (1 - decay_k) weights, for each of several decays.

    Args:
        parameters: (name, tensor) pairs, such as `model.named_parameters()`, whose averages are kept; the shadows begin
            as copies of them.
        decays: each in [0, 1).
        warmup: use min(decay, (1 + k) / (10 + k)) at step k, so that a run much shorter than 1 / (1 - decay) steps
            averages over its last tenth instead of remembering its initial weights. It leaves long runs as
            published: a decay of 0.9999 is reached at step 90,000.

    Float32 throughout: at 0.9999 a bfloat16 shadow would never move.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decays: Iterable[float], warmup: bool = False) -> None:
        named = dict(parameters)
        self.weights, self.warmup = list(named.values()), warmup
        self.shadows = {
            decay: {name: p.detach().to(torch.float32, copy=True) for name, p in named.items()} for decay in decays
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move every shadow towards the weights after optimizer step `step` (from 0)."""
        weights = [p.float() for p in self.weights]
        for decay, shadow in self.shadows.items():
            move_towards(shadow.values(), weights, self.decay_at(decay, step))

    def decay_at(self, decay: float, step: int) -> float:
        """The decay of a shadow in step `step` (from 0)."""
        return warmed_up_decay(decay, step) if self.warmup else decay

    @torch.no_grad()
    def copy_to(self, model: nn.Module, decay: float) -> None:
        """Write the shadow of `decay` into the parameters of `model`."""
        for name, p in model.named_parameters():
            p.copy_(self.shadows[decay][name])

    def state_dict(self, decay: float) -> dict[str, Tensor]:
        """The shadow of one decay, by parameter name."""
        return self.shadows[decay]

    @torch.no_grad()
    def load_state_dict(self, decay: float, state: dict[str, Tensor]) -> None:
        """Restore the shadow of one decay."""
        for name, shadow in self.shadows[decay].items():
            shadow.copy_(state[name])


class PowerEMA(EMA):
    """Power-function averages of two lengths, of whose snapshots those of any other length are made. EDM2, Sec. 3.

    Each is known by its standard deviation as a share of the run; see `power_ema`.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__(parameters, TRACKED_STDS)

    def decay_at(self, decay: float, step: int) -> float:
        """The decay of the average of this standard deviation in step `step` (from 0)."""
        return power_decay(step + 1, power_exponent(decay))
