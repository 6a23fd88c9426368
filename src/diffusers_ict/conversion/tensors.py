"""Checks of the tensors in a checkpoint, which must be dense, finite and floating point, by name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 80  # characters of a name in a message


def shown(name: object) -> str:
    """A name as a message shows it: on one line and not longer than 80 characters."""
    text = name if isinstance(name, str) and name and name.isprintable() else repr(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def checked(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The same entries, now known to be tensors of a network.

    Raises:
        UserError: an entry is no tensor, or one that is sparse, empty, not of floating point or not finite.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"this checkpoint's entries must be named by text, and one is named {shown(name)}.")
        if problem := _problem(value):
            raise UserError(f"this checkpoint cannot be converted: {shown(name)} {problem}.")
    return dict(state)


def tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of a checkpoint.

    Raises:
        UserError: there is none of this name.
    """
    if name not in state:
        raise UserError(f"this checkpoint is incomplete: it has no {name}.")
    return state[name]


def length(state: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """The length of a tensor along an axis.

    Raises:
        UserError: there is no such tensor, or it has no such axis.
    """
    shape = tensor(state, name).shape
    if len(shape) <= axis:
        raise UserError(f"this checkpoint cannot be converted: {name} must have more axes than {tuple(shape)}.")
    return shape[axis]


def _problem(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"must be a tensor, and is of type {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested:
        return "must be a dense tensor"
    if value.dtype not in FLOATS:
        return f"must hold floating point numbers, and holds {str(value.dtype).removeprefix('torch.')}"
    if value.device.type != "cpu":
        return "is a tensor without values"
    if value.ndim == 0 or value.numel() == 0:
        return f"must have values along at least one axis, and has the shape {tuple(value.shape)}"
    if not value.float().isfinite().all():
        return "holds values that are not finite numbers"
    return None
