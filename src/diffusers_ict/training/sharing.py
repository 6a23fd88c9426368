"""What the first process of a run hands to the others, whose machines need not see its disk, and what must be alike."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch import distributed as dist

from ..errors import UserError
from ..hashes import tensors_hash
from .checkpoint import Checkpoint
from .resume import Identity
from .state import RunState


def share_checkpoint(saved: Checkpoint | None, accelerator: Accelerator) -> Checkpoint | None:
    """The checkpoint of the first process, on all of them; those of the others are not looked at."""
    if accelerator.num_processes == 1:
        return saved
    sent = saved if accelerator.is_main_process else None
    # Of a tensor on the meta device, its type and its shape are sent alone.
    told: list[Any] = [None if sent is None else Checkpoint(sent.state, _each(sent, lambda value: value.to("meta")))]
    broadcast_object_list(told)
    if told[0] is None:
        return None
    filled = _each(sent or told[0], lambda value: _broadcast(value, accelerator.device))
    return Checkpoint(told[0].state, filled)


def _each(saved: Checkpoint, change: Callable[[Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
    return {part: {name: change(value) for name, value in named.items()} for part, named in saved.tensors.items()}


def _broadcast(value: Tensor, device: torch.device) -> Tensor:
    """The tensor of the first process, on the CPU; the others give one of its type and shape on the meta device."""
    held = torch.empty_like(value, device=device) if value.is_meta else value.contiguous().to(device)
    dist.broadcast(held, 0)
    return held.cpu()


def check_alike(accelerator: Accelerator, step: int, state: RunState, identity: Identity) -> None:
    """Check that all processes begin with the same images and settings, the same step and the same weights.

    Raises:
        UserError: they do not; on all processes.
    """
    if accelerator.num_processes == 1:
        return
    facts = {**identity.decisive, "the step": step, "the weights": tensors_hash(state.modules["unet"].state_dict())}
    ours = {name: hashlib.sha256(json.dumps(fact, default=str).encode()).hexdigest() for name, fact in facts.items()}
    first, *others = gather_object([ours])
    for rank, theirs in enumerate(others, 1):
        if other := sorted(name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name)):
            raise UserError(
                f"all processes must begin alike, and process {rank} has other values than process 0 of "
                f"{', '.join(other)}: give all machines the same images, settings and versions."
            )
