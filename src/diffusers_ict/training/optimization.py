"""RAdam, and the schedules of its learning rate."""

import warnings

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .recipe import Recipe


def make_optimizer(
    net: nn.Module, learning_rate: float, betas: tuple[float, float], capturable: bool = False
) -> torch.optim.RAdam:
    """RAdam over the named parameters of a network, as all three papers use it.

    Gradients are there from the start, as zeros: a captured step finds them where they are, and the first step of a
    resumed run adds to zeros as any other does, which makes 0 of -0.

    Args:
        capturable: the host reads nothing of its step, which takes thousands of small kernels unless it is compiled.
    """
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    device = next(net.parameters()).device
    rate = torch.tensor(learning_rate, device=device) if capturable else learning_rate
    # foreach: one call for all parameters, also on CPUs, where it is not the default
    return torch.optim.RAdam(net.named_parameters(), rate, betas, foreach=True, capturable=capturable)


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, learning_rate: float, first_step: int) -> LambdaLR:
    """Diffusers' schedule of the recipe's name, from optimizer step `first_step` (from 0) on: a function of the step.

    The first step of a warm-up has a learning rate of 0, as in diffusers.
    """
    if recipe.mixed_precision == "fp16":  # the loss scale skips the first steps, and the schedule counts them all
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
    name, warmup = recipe.lr_scheduler, recipe.lr_warmup_steps
    name = "constant_with_warmup" if name == "constant" and warmup else name
    for group in optimizer.param_groups:
        group["initial_lr"] = learning_rate
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=recipe.max_train_steps,
        last_epoch=first_step - 1,
    )


def rate_of(schedule: LambdaLR, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0), without waiting for the device that may hold it."""
    return float(schedule.base_lrs[0] * schedule.lr_lambdas[0](step))
