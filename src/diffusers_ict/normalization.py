"""Data that is no 8-bit picture: what a network sees of it, and its own units back, x = (value - offset) / scale."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .files import write_json
from .formulas.preconditioning import SIGMA_DATA
from .repository import read_beside

NORMALIZATION_NAME = "normalization.json"  # stock diffusers neither downloads nor reads it
KINDS = ("none", "min-max", "mean-std")
AT_ONCE = 1024  # items that are summed in float64 together


@dataclass(frozen=True)
class Normalization:
    """Offset and scale of each channel.

    Attributes:
        kind: "min-max", which fills [-1, 1]; "mean-std", with mean 0 and the deviation sigma_data of the
            preconditioning; or "none", which leaves values as they are.
        offset, scale: in the units of the data, one number for each channel.

    Raises:
        ValueError: another kind, not as many offsets as scales, or a scale that is not a positive number.
    """

    kind: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        numbers = torch.tensor([self.offset, self.scale], dtype=torch.float64)
        if not (numbers.numel() and numbers.isfinite().all() and (numbers[1] > 0).all()):
            raise ValueError(
                f"each channel needs a finite offset and a positive scale, got {self.offset} and {self.scale}."
            )

    @property
    def bounded(self) -> bool:
        """Whether the normalised data lie within [-1, 1], so that samples may be clipped to it."""
        return self.kind == "min-max"

    def apply(self, values: Tensor) -> Tensor:
        """Values in their own units, [..., C, H, W] of any type -> float32 as the network sees them."""
        offset, scale = self._constants(values)
        return ((values.double() - offset) / scale).float()

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `apply`, up to the rounding of float32: [..., C, H, W] -> float32 in the data's units."""
        offset, scale = self._constants(x)
        return (x.double() * scale + offset).float()

    def _constants(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if values.shape[-3] != len(self.offset):
            raise ValueError(f"the data must have {len(self.offset)} channels, got {values.shape[-3]}.")
        numbers = torch.tensor([self.offset, self.scale], dtype=torch.float64, device=values.device)
        offset, scale = numbers[..., None, None]
        return offset, scale


def save_normalization(folder: str | os.PathLike, normalization: Normalization | None) -> None:
    """Write normalization.json into a folder, or remove the one that is there where a model draws pictures."""
    path = Path(folder) / NORMALIZATION_NAME
    if normalization is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, dataclasses.asdict(normalization))


def load_normalization(repository: str | os.PathLike, options: dict[str, Any]) -> Normalization | None:
    """That of a folder or of a Hub repository, or None.

    Args:
        options: what the pipeline was loaded with.

    Raises:
        UserError: normalization.json cannot be read.
    """

    def parse(entries: dict[str, Any]) -> Normalization:
        offset, scale = (tuple(map(float, entries[name])) for name in ("offset", "scale"))
        return Normalization(entries["kind"], offset, scale)

    return read_beside(repository, NORMALIZATION_NAME, options, parse, '{"kind": ..., "offset": [...], "scale": [...]}')


def fit(values: Tensor, kind: str) -> Normalization:
    """The normalization of a data set, [n, C, H, W] of any type; mean and deviation are those of the population.

    Raises:
        UserError: a channel that is constant, where it would have to be scaled.
    """
    channels = values.shape[1]
    if kind == "none":
        return Normalization(kind, (0.0,) * channels, (1.0,) * channels)

    def parts() -> Iterator[Tensor]:
        """The numbers of each channel, some at a time: a copy of all of them in float64 may not fit into memory."""
        return (part.double().transpose(0, 1).flatten(1) for part in values.split(AT_ONCE))

    ends = torch.stack([torch.stack([part.amin(1), part.amax(1)]) for part in parts()])
    least, most = ends[:, 0].amin(0), ends[:, 1].amax(0)
    if len(constant := (least == most).nonzero().flatten()):
        first = int(constant[0])
        raise UserError(
            f"`normalize` {kind} needs channels that vary, and channel {first} is {least[first]:g} everywhere: leave "
            "it out of the data, or give `normalize` none."
        )
    if kind == "min-max":
        return Normalization(kind, tuple(((most + least) / 2).tolist()), tuple(((most - least) / 2).tolist()))
    count = values.numel() // channels
    mean = torch.stack([part.sum(1) for part in parts()]).sum(0) / count
    variance = torch.stack([((part - mean[:, None]) ** 2).sum(1) for part in parts()]).sum(0) / count
    # In float32: the last bits of these sums differ between processors, and a run may go on on another one.
    return Normalization(kind, tuple(mean.float().tolist()), tuple((variance.sqrt() / SIGMA_DATA).float().tolist()))
