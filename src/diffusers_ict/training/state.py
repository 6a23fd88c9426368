"""Everything a run must remember: written into a checkpoint, and put back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..errors import UserError
from . import checkpoint
from .adversary import Adversary
from .checkpoint import Checkpoint
from .ema import EMA
from .log import TrainingDiverged
from .recipe import Recipe


@dataclass
class RunState:
    """The parts of a run that change as it trains. Chance is not among them: it is a function of the step.

    Attributes:
        unet, optimizer: the student and its RAdam.
        ema: averages to sample with.
        teacher: CT's EMA teacher, or None.
        adversary: ACT's second player, or None.
        scaler: loss scale of fp16, or None.
    """

    recipe: Recipe
    unet: UNet2DModel
    optimizer: torch.optim.Optimizer
    ema: EMA
    teacher: UNet2DModel | None = None
    adversary: Adversary | None = None
    scaler: Any = None

    def save(self, folder: Path, step: int, train_seconds: float) -> Path:
        """Write a checkpoint after `step` optimizer steps.

        Raises:
            TrainingDiverged: a weight is not a number; nothing is written.
        """
        if not all(p.isfinite().all() for p in self.unet.parameters()):
            raise TrainingDiverged(f"a weight is not a number after step {step - 1}")
        state: dict[str, Any] = {
            "step": step,
            "train_seconds": train_seconds,
            "recipe": self.recipe.computed(),
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.adversary is not None:
            state["augmentation"] = self.adversary.strength.state()
        return checkpoint.save(folder, step, Checkpoint(state, self._tensors()), self.recipe.checkpoints_total_limit)

    def load(self, folder: Path) -> tuple[int, float]:
        """Continue from the checkpoint the recipe names, as (steps done, seconds trained).

        Raises:
            UserError: it is missing, damaged, or of another recipe.
        """
        wanted = self.recipe.resume_from_checkpoint
        loaded = checkpoint.load_latest(folder) if wanted == "latest" else checkpoint.load(Path(wanted))
        self.recipe.check_resumes(loaded.state["recipe"])
        for name, module in self._modules().items():
            module.load_state_dict(loaded.tensors[name])
        for name, (optimizer, module) in self._optimizers().items():
            checkpoint.restore_optimizer(optimizer, module, loaded.tensors[name])
        for number, decay in enumerate(self.ema.shadows):
            self.ema.load_state_dict(decay, loaded.tensors[f"ema_{number}"])
        if self.scaler is not None:
            self.scaler.load_state_dict(loaded.state["scaler"])
        if self.adversary is not None:
            self.adversary.strength.load_state(loaded.state["augmentation"])
        return loaded.state["step"], loaded.state["train_seconds"]

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"unet": self.unet, "teacher": self.teacher}
        if self.adversary is not None:
            modules["discriminator"] = self.adversary.model
        return {name: module for name, module in modules.items() if module is not None}

    def _optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        pairs = {"optimizer": (self.optimizer, self.unet)}
        if self.adversary is not None:
            pairs["discriminator_optimizer"] = (self.adversary.optimizer, self.adversary.model)
        return pairs

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {name: dict(module.state_dict()) for name, module in self._modules().items()}
        for name, (optimizer, module) in self._optimizers().items():
            tensors[name] = checkpoint.optimizer_tensors(optimizer, module)
        for number, decay in enumerate(self.ema.shadows):
            tensors[f"ema_{number}"] = self.ema.state_dict(decay)
        return tensors


def claim_output_dir(folder: Path, resuming: bool) -> None:
    """May this run write into `folder`? Nothing is created.

    Raises:
        UserError: it holds another run, or is a file.
    """
    if folder.is_file():
        raise UserError(f"--output_dir must be a folder, and {folder} is a file.")
    if not resuming and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--output_dir {folder} holds another run: add --resume_from_checkpoint latest to go on with it, or name "
            "another folder."
        )
