"""A PyTorch checkpoint, read without running code that it may hold, and checks of the tensors in it."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, first_line

ARCHIVE = b"PK\x03\x04"  # first bytes of what PyTorch has written since 1.6
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LONGEST_NAME = 80  # characters of a name in a message


def shown(name: object) -> str:
    """A name as a message shows it: on one line and not longer than 80 characters."""
    text = name if isinstance(name, str) and name and name.isprintable() else repr(name)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """The dictionary in a file; nothing but tensors and plain containers is unpickled.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else.
    """
    name = shown(path.name)
    try:
        _check_file(path)
        # Files of PyTorch before 1.6 are no archives, and cannot be mapped into memory.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no file {shown(str(path))}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name} holds more than tensors and plain containers, and loading that could run any code: ask its "
            "author for the bare weights."
        ) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(f"{name} cannot be read as a PyTorch file: {first_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{name} must hold a dictionary of tensors, and holds a {type(checkpoint).__name__}.")
    return checkpoint


def _check_file(path: Path) -> None:
    """Check that a file is not empty, and the checksum of every member of an archive, which PyTorch does not.

    Raises:
        UserError: it is empty or damaged; OSError, ValueError: there is no such file, or there cannot be.
    """
    name = shown(path.name)
    with path.open("rb") as file:
        start = file.read(len(ARCHIVE))
    if not start:
        raise UserError(f"{name} is empty.")
    if start != ARCHIVE and not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile's own, zlib's, or of the operating system
        raise UserError(f"{name} is damaged or incomplete, get it again: {first_line(error)}") from error
    if damaged is not None:
        raise UserError(f"{name} is damaged, get it again: the checksum of {shown(damaged)} in it is wrong.")


def check_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The same entries, now known to be tensors of a network: dense, finite and of floating point.

    Raises:
        UserError: an entry is something else; names it.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"this checkpoint's entries must be named by text, and one is named {shown(name)}.")
        if problem := _problem(value):
            raise UserError(f"this checkpoint cannot be converted: {shown(name)} {problem}.")
    return dict(state)


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


def get_tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
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
    shape = get_tensor(state, name).shape
    if len(shape) <= axis:
        raise UserError(f"this checkpoint cannot be converted: {name} must have more axes than {tuple(shape)}.")
    return shape[axis]
