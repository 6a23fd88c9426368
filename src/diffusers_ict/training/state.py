"""The state of a run, as written to a checkpoint and read from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data import TrainingData
from ..data.stream import StreamedImages
from ..errors import TrainingDiverged, UserError
from ..objectives.base import Objective
from . import checkpoint
from .checkpoint import Checkpoint
from .ema import Average
from .networks import Networks


@dataclass
class RunState:
    """The parts of a run that change as it trains. Randomness is not part of the state: it is a function of the step.

    Attributes:
        modules: networks in training, and teachers, by name.
        optimizers: by name, over named parameters.
        averages: of the weights, by name.
        scaler: loss scale of fp16, or None.
        memories: of the adversary and the objective, with `state()` and `load_state()`, by name.
        stream: images that are streamed, or None.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    averages: dict[str, Average]
    scaler: Any = None
    memories: dict[str, Any] = field(default_factory=dict)
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
        for part, named in tensors.items():
            network = self.modules.get(part) or getattr(self.averages.get(part), "module", None)
            buffers = {} if network is None else dict(network.named_buffers())  # which may be masks of -inf
            for name, value in named.items():
                if name not in buffers and not value.isfinite().all():
                    raise TrainingDiverged(f"{part} {name} is not finite after step {step}")
        state: dict[str, Any] = {"step": step, "train_seconds": train_seconds, **facts}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        state |= {name: memory.state() for name, memory in self.memories.items()}
        return checkpoint.save(folder, step, Checkpoint(state, tensors), keep)

    def load(self, saved: Checkpoint) -> None:
        """Put back what `save` wrote.

        Raises:
            UserError: it holds other networks or averages than this run has; nothing is changed.
        """
        self._check_fits(saved)
        for name, module in self.modules.items():
            module.load_state_dict(saved.tensors[name])
        for name, optimizer in self.optimizers.items():
            load_moments(optimizer, saved.tensors[name])
        for name, average in self.averages.items():
            average.module.load_state_dict(saved.tensors[name])
            average.steps = saved.state["step"]
        # Both begin anew in a run that goes on with changes.
        if self.scaler is not None and "scaler" in saved.state:
            self.scaler.load_state_dict(saved.state["scaler"])
        for name in self.memories.keys() & saved.state.keys():
            self.memories[name].load_state(saved.state[name])
        if self.stream is not None and "stream" in saved.state:
            self.stream.seek(saved.state["stream"])

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {name: dict(module.state_dict()) for name, module in self.modules.items()}
        tensors |= {name: moments(optimizer) for name, optimizer in self.optimizers.items()}
        return tensors | {name: dict(average.module.state_dict()) for name, average in self.averages.items()}

    def _check_fits(self, saved: Checkpoint) -> None:
        ours = self._tensors()
        if ours.keys() != saved.tensors.keys():
            raise UserError(
                f"the checkpoint holds {', '.join(sorted(saved.tensors))} and this run has {', '.join(sorted(ours))}: "
                "resume with the same `loss`, `objective` and `ema_decays`."
            )
        for part in ours.keys() - self.optimizers.keys():  # an optimizer has no moments before its first step
            here, there = ({k: tuple(t.shape) for k, t in tensors[part].items()} for tensors in (ours, saved.tensors))
            if here != there:
                name = next(k for k in sorted({*here, *there}) if here.get(k) != there.get(k))
                raise UserError(
                    f"the checkpoint does not fit this run's networks: {part} {name} has the shape {there.get(name)} "
                    f"there and {here.get(name)} here."
                )


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts of an optimizer over named parameters, keyed "parameter name|entry"."""
    state = optimizer.state_dict()
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    return {f"{names[index]}|{key}": value for index, entry in state["state"].items() for key, value in entry.items()}


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `moments` gave; learning rates stay as they are."""
    groups = optimizer.state_dict()["param_groups"]
    numbers = {name: number for number, name in enumerate(n for group in groups for n in group["param_names"])}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[numbers[name]]
        # A tensor of its own, which the optimizer keeps, laid out like the parameter.
        kept = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.clone()
        state.setdefault(numbers[name], {})[entry] = kept
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def state_of(networks: Networks, accelerator: Accelerator, data: TrainingData, objective: Objective) -> RunState:
    """Everything of a run that a checkpoint holds."""
    modules, optimizers = {"unet": networks.unet}, {"optimizer": networks.optimizer.optimizer}
    if networks.teacher is not None:
        modules["teacher"] = networks.teacher
    adversary = networks.adversary
    if adversary is not None:
        modules["discriminator"] = adversary.model
        optimizers["discriminator_optimizer"] = adversary.optimizer.optimizer
    averages = {f"ema_{number}": average for number, average in enumerate(networks.averages.values())}
    averages |= {f"power_{number}": average for number, average in enumerate(networks.powers.values())}
    both = {"adversary": getattr(adversary, "memory", None), "objective_memory": objective.memory}
    memories = {name: memory for name, memory in both.items() if memory is not None}
    stream = data if isinstance(data, StreamedImages) else None
    return RunState(modules, optimizers, averages, accelerator.scaler, memories, stream)
