"""The state of a run, as written to a checkpoint and read from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.stream import StreamedImages
from ..errors import TrainingDiverged, UserError
from ..objectives.act import AdaptiveStrength
from . import checkpoint
from .checkpoint import Checkpoint
from .ema import EMA


@dataclass
class RunState:
    """The parts of a run that change as it trains. Randomness is not part of the state: it is a function of the step.

    Attributes:
        modules: networks in training, and teachers, by name.
        optimizers: (optimizer, the module it trains), by name.
        ema: averages to sample with.
        powers: averages that snapshots are taken of, or None.
        scaler: loss scale of fp16, or None.
        strength: of ACT's augmentation, or None.
        stream: images that are streamed, or None.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, tuple[torch.optim.Optimizer, nn.Module]]
    ema: EMA
    powers: EMA | None = None
    scaler: Any = None
    strength: AdaptiveStrength | None = None
    stream: StreamedImages | None = None

    def save(
        self, folder: Path, step: int, train_seconds: float, facts: dict[str, Any], keep: int | None = None
    ) -> Path:
        """Write a checkpoint after `step` optimizer steps.

        Args:
            facts: about the run, as JSON types; what a resumed run is compared by.
            keep: newest checkpoints that stay.

        Raises:
            TrainingDiverged: some tensor is not finite; nothing is written.
            UserError: it cannot be written.
        """
        tensors = self._tensors()
        if (name := _not_finite(tensors)) is not None:
            raise TrainingDiverged(f"{name} is not finite after step {step}")
        state: dict[str, Any] = {"step": step, "train_seconds": train_seconds, **facts}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.strength is not None:
            state["augmentation"] = self.strength.state()
        return checkpoint.save(folder, step, Checkpoint(state, tensors), keep)

    def load(self, saved: Checkpoint) -> None:
        """Put back what `save` wrote.

        Raises:
            UserError: it holds other networks or averages than this run has; nothing is changed.
        """
        self._check_fits(saved)
        for name, module in self.modules.items():
            module.load_state_dict(saved.tensors[name])
        for name, (optimizer, module) in self.optimizers.items():
            checkpoint.restore_optimizer(optimizer, module, saved.tensors[name])
        for part, (averages, decay) in self._averages().items():
            averages.load_state_dict(decay, saved.tensors[part])
        # Both begin anew in a run that goes on with changes.
        if self.scaler is not None and "scaler" in saved.state:
            self.scaler.load_state_dict(saved.state["scaler"])
        if self.strength is not None and "augmentation" in saved.state:
            self.strength.load_state(saved.state["augmentation"])
        if self.stream is not None and "stream" in saved.state:
            self.stream.seek(saved.state["stream"])

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {name: dict(module.state_dict()) for name, module in self.modules.items()}
        for name, (optimizer, module) in self.optimizers.items():
            tensors[name] = checkpoint.optimizer_tensors(optimizer, module)
        for part, (averages, decay) in self._averages().items():
            tensors[part] = averages.state_dict(decay)
        return tensors

    def _averages(self) -> dict[str, tuple[EMA, float]]:
        kinds = {"ema": self.ema} | ({} if self.powers is None else {"power": self.powers})
        return {
            f"{kind}_{number}": (averages, decay)
            for kind, averages in kinds.items()
            for number, decay in enumerate(averages.shadows)
        }

    def _check_fits(self, saved: Checkpoint) -> None:
        own = self._tensors()
        if own.keys() != saved.tensors.keys():
            raise UserError(
                f"the checkpoint holds {', '.join(sorted(saved.tensors))} and this run has {', '.join(sorted(own))}: "
                "resume with the same `loss`, `consistency` and `ema_decays`."
            )
        for part in own.keys() - self.optimizers.keys():  # an optimizer has no moments before its first step
            shapes, there = ({k: tuple(t.shape) for k, t in of[part].items()} for of in (own, saved.tensors))
            if shapes != there:
                name = next(k for k in sorted({*shapes, *there}) if shapes.get(k) != there.get(k))
                raise UserError(
                    f"the checkpoint does not fit this run's networks: {part} {name} has the shape {there.get(name)} "
                    f"there and {shapes.get(name)} here."
                )


def _not_finite(tensors: dict[str, dict[str, Tensor]]) -> str | None:
    """The name of a tensor with a value that is not finite, or None."""
    named = ((f"{part} {name}", value) for part, own in tensors.items() for name, value in own.items())
    return next((name for name, value in named if not value.isfinite().all()), None)
