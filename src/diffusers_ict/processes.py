"""Accelerate's processes: which kinds are supported, and how they average gradients."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from .errors import UserError, first_line

BUCKET_BYTES = 25 << 20  # as of DistributedDataParallel
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


class GradientMean:
    """Replaces the gradients of a network by their mean over the processes, while the backward pass still runs.

    Gradients travel in buckets: those of the last layers, which are ready first, are on their way while those of the
    first layers are computed. In place of DistributedDataParallel, which does not work with `torch.autograd.grad`, that
    the gradient penalty is made of.

    Args:
        accelerator: of these processes.
        parameters: of the network, in the order in which the forward pass uses them, as `nn.Module.parameters` has it.
        bucket_bytes: size at which a bucket is full.
    """

    def __init__(
        self, accelerator: Accelerator, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.processes = accelerator.num_processes
        self.buckets: list[list[nn.Parameter]] = []
        self.missing: list[int] = []  # gradients that a bucket still waits for; empty while none is sent
        self.sent: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self.next = 0  # the bucket to be sent next: every process must send them in the same order
        room = 0
        for parameter in reversed([p for p in parameters if p.requires_grad]) if self.processes > 1 else ():
            if room <= 0:
                self.buckets.append([])
                room = bucket_bytes
            self.buckets[-1].append(parameter)
            parameter.register_post_accumulate_grad_hook(partial(self._ready, len(self.buckets) - 1))
            room -= parameter.nbytes

    @contextmanager
    def over_processes(self, last: bool = True) -> Iterator[None]:
        """Around a backward pass. The one of the last part of a step averages what all parts have added up.

        A parameter must have a gradient on all processes or on none.
        """
        if last:
            self.missing = [len(bucket) for bucket in self.buckets]
        yield
        if last:
            self._finish()

    def _ready(self, bucket: int, _: Tensor) -> None:
        if self.missing:
            self.missing[bucket] -= 1
            while self.next < len(self.buckets) and self.missing[self.next] == 0:
                self._send()

    def _send(self) -> None:
        gradients = [p.grad for p in self.buckets[self.next] if p.grad is not None]
        self.next += 1
        if gradients:
            message = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.processes)
            self.sent.append((dist.all_reduce(message, async_op=True), message, gradients))

    def _finish(self) -> None:
        """Send what waits for gradients that do not exist, and put the means in their places."""
        while self.next < len(self.buckets):
            self._send()
        for work, message, gradients in self.sent:
            work.wait()
            for gradient, mean in zip(gradients, message.split([g.numel() for g in gradients])):
                gradient.copy_(mean.view_as(gradient))
        self.missing, self.sent, self.next = [], [], 0
