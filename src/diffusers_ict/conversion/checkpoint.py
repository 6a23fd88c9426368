"""A PyTorch checkpoint, read without running code that it may hold, and checks of the tensors in it."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, first_line

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shown(name: object, longest: int = 80) -> str:
    """A name as a message shows it: on one line and not longer than 80 characters."""
    text = name if isinstance(name, str) and name and name.isprintable() else repr(name)
    return text if len(text) <= longest else f"{text[:longest]}..."


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """The dictionary in a file, or a UserError; nothing but tensors and plain containers is unpickled."""
    name = shown(path.name)
    try:
        # Files of PyTorch before 1.6 are no archives: they have no checksums, and cannot be mapped into memory.
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # PyTorch does not look at the checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {shown(damaged)} in it is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {shown(str(path))}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name} holds more than tensors and plain containers, and loading that could run any code: ask its "
            "author for the bare weights."
        ) from error
    except EOFError as error:
        raise UserError(f"{name} is empty or cut off, get it again.") from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(
            f"{name} cannot be read as a PyTorch file, get it again if it is damaged: {first_line(error)}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{name} must hold a dictionary of tensors, and holds a {type(checkpoint).__name__}.")
    return checkpoint


def check_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The same entries, now known to be tensors of a network: dense, finite and of floating point; or a UserError."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"this checkpoint's entries must be named by text, and one is named {shown(name)}.")
        if problem := _problem(value):
            raise UserError(f"this checkpoint cannot be converted: {shown(name)} {problem}.")
    return dict(state)


def _problem(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"must be a tensor, and is of type {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested or value.dtype not in FLOATS or value.device.type != "cpu":
        return (
            f"must be a dense tensor of floating point numbers, and is {value.dtype}, {value.layout}, on {value.device}"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a view that repeats its values
        return f"has the shape {tuple(value.shape)}, and the file holds fewer values"
    if value.ndim == 0 or value.numel() == 0:
        return f"must have values along at least one axis, and has the shape {tuple(value.shape)}"
    return None if value.float().isfinite().all() else "holds values that are not finite numbers"


def length(state: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """The length of a tensor of a checkpoint along an axis, or a UserError."""
    if name not in state:
        raise UserError(f"this checkpoint is incomplete: it has no {name}.")
    shape = state[name].shape
    if len(shape) <= axis:
        raise UserError(f"this checkpoint cannot be converted: {name} must have more axes than {tuple(shape)}.")
    return shape[axis]
