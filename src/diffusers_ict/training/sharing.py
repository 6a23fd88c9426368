"""What the first process of a run hands to the others, whose machines need not see its disk, and what must be alike."""

import hashlib
import json
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch import distributed as dist

from ..errors import UserError
from ..hub.provenance import tensors_hash
from .checkpoint import Checkpoint
from .resume import Identity
from .state import RunState


def share_checkpoint(saved: Checkpoint | None, accelerator: Accelerator) -> Checkpoint | None:
    """The checkpoint of the first process, on all of them; those of the others are not looked at."""
    if accelerator.num_processes == 1:
        return saved
    told: list[Any] = [None]
    if accelerator.is_main_process and saved is not None:
        kinds = {part: {name: _kind(value) for name, value in named.items()} for part, named in saved.tensors.items()}
        told = [(saved.state, kinds)]
    broadcast_object_list(told)
    if told[0] is None:
        return None
    state, kinds = told[0]
    tensors: dict[str, dict[str, Tensor]] = {}
    for part, named in kinds.items():
        for name, (kind, shape) in named.items():
            own = saved.tensors[part][name] if accelerator.is_main_process and saved is not None else None
            value = torch.empty(shape, dtype=getattr(torch, kind)) if own is None else own.contiguous()
            value = value.to(accelerator.device)
            dist.broadcast(value, 0)
            tensors.setdefault(part, {})[name] = value.cpu()
    return Checkpoint(state, tensors)


def _kind(value: Tensor) -> tuple[str, tuple[int, ...]]:
    return str(value.dtype).removeprefix("torch."), tuple(value.shape)


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
