"""The state of a run, as written to a checkpoint and read from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..act import AdaptiveStrength
from ..errors import TrainingDiverged, UserError
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
        scaler: loss scale of fp16, or None.
        strength: of ACT's augmentation, or None.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, tuple[torch.optim.Optimizer, nn.Module]]
    ema: EMA
    scaler: Any = None
    strength: AdaptiveStrength | None = None

    def save(
        self, folder: Path, step: int, train_seconds: float, settings: dict[str, Any], keep: int | None = None
    ) -> Path:
        """Write a checkpoint after `step` optimizer steps.

        Args:
            settings: those that a resumed run must agree in.
            keep: newest checkpoints that stay.

        Raises:
            TrainingDiverged: a weight is not a number; nothing is written.
        """
        if not all(p.isfinite().all() for p in self.modules["unet"].parameters()):
            raise TrainingDiverged(f"a weight is not a number after step {step - 1}")
        state: dict[str, Any] = {"step": step, "train_seconds": train_seconds, "recipe": settings}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.strength is not None:
            state["augmentation"] = self.strength.state()
        return checkpoint.save(folder, step, Checkpoint(state, self._tensors()), keep)

    def load(self, saved: Checkpoint) -> None:
        """Put back what `save` wrote."""
        for name, module in self.modules.items():
            module.load_state_dict(saved.tensors[name])
        for name, (optimizer, module) in self.optimizers.items():
            checkpoint.restore_optimizer(optimizer, module, saved.tensors[name])
        for number, decay in enumerate(self.ema.shadows):
            self.ema.load_state_dict(decay, saved.tensors[f"ema_{number}"])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved.state["scaler"])
        if self.strength is not None:
            self.strength.load_state(saved.state["augmentation"])

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {name: dict(module.state_dict()) for name, module in self.modules.items()}
        for name, (optimizer, module) in self.optimizers.items():
            tensors[name] = checkpoint.optimizer_tensors(optimizer, module)
        for number, decay in enumerate(self.ema.shadows):
            tensors[f"ema_{number}"] = self.ema.state_dict(decay)
        return tensors


def claim_output_dir(folder: Path, resuming: bool) -> None:
    """Check that this run may write into `folder`. Nothing is created.

    Raises:
        UserError: it holds another run, or is a file.
    """
    if folder.is_file():
        raise UserError(f"`output_dir` must be a folder, and {folder} is a file.")
    if not resuming and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"`output_dir` {folder} holds another run: add `resume_from_checkpoint` latest to continue it, or name "
            "another folder."
        )
