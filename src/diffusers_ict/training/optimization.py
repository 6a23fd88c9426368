"""Settings of the optimizer that change over a run, as functions of the step, so that a resumed run needs no state."""

from collections.abc import Callable, Iterable

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn


def learning_rate_factor(name: str, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at optimizer step k (from 0), with diffusers' schedules.

    Args:
        name: "constant", "linear" or "cosine", after the warm-up.
        warmup_steps: steps over which the factor rises linearly from 0.
    """
    if name == "constant" and warmup_steps == 0:
        return lambda step: 1.0
    name = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)  # only the function is used
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    (factor,) = scheduler.lr_lambdas
    # diffusers begins a warm-up at 0, at which the first step would not move; here step k has the factor of k + 1.
    return lambda step: factor(step + 1) if step < warmup_steps else factor(step)


def make_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float, betas: tuple[float, float], capturable: bool = False
) -> torch.optim.RAdam:
    """RAdam, as all three papers use it.

    Gradients are there from the start, as zeros: a captured step finds them where they are, and the first step of a
    resumed run adds to zeros as any other does, which makes 0 of -0.

    Args:
        capturable: the host reads nothing of its step, which takes thousands of small kernels unless it is compiled.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    rate = torch.tensor(learning_rate, device=parameters[0].device) if capturable else learning_rate
    # foreach: one call for all parameters, also on CPUs, where it is not the default
    return torch.optim.RAdam(parameters, rate, betas, foreach=True, capturable=capturable)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
