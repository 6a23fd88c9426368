"""The networks of a run on their device, with what trains and averages them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..discriminator import ConsistencyDiscriminator
from ..formulas.dropout import share_dropout
from ..formulas.preconditioning import ConsistencyFunction
from ..objectives.act import ACT
from ..objectives.adversarial import Adversarial
from ..objectives.base import Objective
from ..objectives.relativistic import Relativistic
from ..processes import distributed, in_precision
from ..scheduling_ict import ICTScheduler
from .act import ACTAdversary
from .adversary import Adversary
from .captured import can_capture
from .ema import TRACKED_STDS, Average, exponential_average, power_average
from .optimization import make_optimizer, make_schedule
from .recipe import Recipe
from .relativistic import RelativisticAdversary

ADVERSARIES: dict[type, type[Adversary]] = {ACT: ACTAdversary, Relativistic: RelativisticAdversary}


@dataclass
class Networks:
    """The networks of a run.

    Attributes:
        unet: the student; net: the student as its training passes call it; optimizer: of its weights.
        teacher: CT's EMA teacher; None where the student is its own teacher.
        f: the consistency function around `net`; f_student: around the student alone; f_teacher: around the teacher.
        adversary: the discriminator of an adversarial objective, or None.
        averages: EMAs by decay; powers: the averages that snapshots are taken of, by standard deviation.
    """

    unet: nn.Module
    net: nn.Module
    optimizer: Any
    teacher: nn.Module | None
    f: ConsistencyFunction
    f_student: ConsistencyFunction
    f_teacher: ConsistencyFunction
    adversary: Adversary | None
    averages: dict[float, Average]
    powers: dict[float, Average]

    def adversary_at(self, step: int) -> Adversary | None:
        """The discriminator that takes part in an optimizer step, counted from 0, or None."""
        return self.adversary if self.adversary is not None and step >= self.adversary.first_step else None


def config_of(net: nn.Module) -> dict[str, Any]:
    """The config of a network: that of diffusers' models is a mapping, others have objects or none."""
    config = getattr(net, "config", {})
    return dict(config) if isinstance(config, Mapping) else vars(config)


def prepare_networks(
    recipe: Recipe,
    accelerator: Accelerator,
    objective: Objective,
    scheduler: ICTScheduler,
    unet: nn.Module,
    discriminator: ConsistencyDiscriminator | None,
) -> Networks:
    """Put networks on the device, and give them optimizers, processes, a teacher and averages.

    Args:
        recipe: resolved; its betas and learning rates are there.
    """
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    unet.to(accelerator.device, memory_format=layout).train()  # type: ignore[call-overload]
    capture = can_capture(recipe, accelerator)
    betas = (recipe.adam_beta1 or 0.0, recipe.adam_beta2 or 0.0)
    optimizer = accelerator.prepare(make_optimizer(unet, recipe.learning_rate, betas, capture))
    net = distributed(unet, accelerator)  # before the copies, which begin with the weights of the first process
    teacher = None
    if objective.teacher_decay(0, recipe.max_train_steps) is not None:
        teacher = copy.deepcopy(unet).requires_grad_(False)
    share_dropout(*(unet, teacher) if teacher is not None else (unet,))
    averages = {decay: exponential_average(unet, decay, recipe.ema_warmup) for decay in recipe.ema_decays}
    stds = () if recipe.ema_snapshot_steps is None else TRACKED_STDS
    powers = {std: power_average(unet, std) for std in stds}
    adversary = None
    if discriminator is not None and isinstance(objective, Adversarial):
        discriminator.to(memory_format=layout)
        rate = recipe.discriminator_learning_rate or recipe.learning_rate
        kind = next(ADVERSARIES[base] for base in type(objective).__mro__ if base in ADVERSARIES)
        adversary = kind(
            accelerator, objective, discriminator, rate, recipe.torch_compile, capture,
            objective.first_step(recipe.max_train_steps),
        )  # fmt: skip
    if recipe.torch_compile:
        for network in (unet, teacher) if teacher is not None else (unet,):
            network.compile(fullgraph=True)
    f, f_student, f_teacher = (
        scheduler.consistency_function(in_precision(network, accelerator)) for network in (net, unet, teacher or unet)
    )
    return Networks(unet, net, optimizer, teacher, f, f_student, f_teacher, adversary, averages, powers)


def configs_of(networks: Networks, constants: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The configs of the networks by name; with that of the UNet, unusual constants of its preconditioning."""
    configs = {"unet": {**config_of(networks.unet), **constants}}
    if networks.adversary is not None:
        configs["discriminator"] = config_of(networks.adversary.model)
    return configs


def make_schedules(recipe: Recipe, networks: Networks, first_step: int) -> list[LambdaLR]:
    """Of the learning rates, from optimizer step `first_step` (from 0) on; that of D counts the steps of D."""
    schedules = [make_schedule(recipe, networks.optimizer.optimizer, recipe.learning_rate, first_step)]
    if networks.adversary is not None:
        rate = recipe.discriminator_learning_rate or recipe.learning_rate
        its_first = max(0, first_step - networks.adversary.first_step)
        schedules.append(make_schedule(recipe, networks.adversary.optimizer.optimizer, rate, its_first))
    return schedules
