"""Accelerate's processes: which kinds are supported, and how they average gradients."""

import importlib.util
import os
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from .errors import UserError, first_line

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(mixed_precision: str | None, report_to: str | None, folder: str) -> Accelerator:
    """Accelerate's view of devices and processes.

    Raises:
        UserError: the precision, the tracker or the way the processes were launched cannot be used here.
    """
    if report_to is not None and importlib.util.find_spec(report_to) is None:
        raise UserError(f"`report_to` {report_to} needs its library: pip install {report_to}.")
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, log_with=report_to, project_dir=folder)
    except (ValueError, ImportError) as error:
        raise UserError(f"accelerate cannot run with these settings: {first_line(error)}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "`mixed_precision` fp16 does not exist on CPUs, where accelerate would compute in float32; use bf16 or no."
        )
    check_processes(accelerator)
    return accelerator


def network_precision(accelerator: Accelerator) -> torch.dtype | None:
    """The half precision that networks compute in, or None for float32.

    For `torch.autocast`, which can be compiled; accelerate's own context cannot.
    """
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def check_processes(accelerator: Accelerator) -> None:
    """Check that accelerate sees the processes that were launched, each with a full copy of the model.

    Raises:
        UserError: several were launched that do not know of each other (`accelerate launch --cpu` does that), or a
            sharding backend is configured.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise UserError(
            f"{launched} processes were launched but each runs alone; on CPUs set ACCELERATE_USE_CPU=1 and launch with "
            f"torchrun --nproc_per_node {launched}."
        )
    if accelerator.distributed_type not in PLAIN:
        raise UserError(
            f"training runs on one process or on several with full copies of the model, got "
            f"{accelerator.distributed_type.value}; change it with accelerate config."
        )


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one message.

    In place of DistributedDataParallel, which supports neither the second derivatives of the gradient penalty nor
    two forward passes of one step without care.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    mean = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))
