"""Snapshots of power-function averages, and averages of any length that are made of them after the run."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError, first_line
from ..files import atomic_file, read_tensors
from ..formulas.power_ema import power_exponent, reconstruction
from ..hub.card import write_card
from ..hub.run_files import AVERAGES, list_snapshots
from .ema import Average

HASH = "sha256"  # of names and values, in the header of a file


def save_snapshot(folder: Path, averages: dict[float, Average], step: int) -> None:
    """Write the averages after `step` optimizer steps into the folder of a run, in float16, as EDM2 does."""
    tensors = {
        f"{std}|{name}": tensor.half().cpu().contiguous()
        for std, average in averages.items()
        for name, tensor in average.module.state_dict().items()
    }
    with atomic_file(folder / AVERAGES / f"step-{step:07d}.safetensors") as temporary:
        save_file(tensors, temporary, {HASH: _digest(tensors)})


def remove_snapshots_after(folder: Path, step: int) -> None:
    """Delete what a run that is resumed after `step` steps will write anew, perhaps otherwise."""
    for later, path in list_snapshots(folder).items():
        if later > step:
            path.unlink()


def reconstruct(folder: Path, std: float, step: int | None = None) -> tuple[dict[str, Tensor], float]:
    """The average of this relative standard deviation after `step` steps, made of the snapshots up to then.

    Args:
        step: by default that of the last snapshot.

    Returns:
        (float32 tensors by name; the distance of its profile from the exact one, as a share of its norm).

    Raises:
        UserError: there are no snapshots, one is damaged, or there is no such average.
    """
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise UserError(f"{folder} has no snapshots of averages: train with `ema_snapshot_steps`.")
    step = max(snapshots) if step is None else step
    if step not in snapshots:
        raise UserError(f"`step` must be that of a snapshot ({', '.join(map(str, snapshots))}), got {step}.")
    try:
        wanted = (step, power_exponent(std))
    except ValueError as error:
        raise UserError(f"`std`: {error}") from error
    used = [path for number, path in snapshots.items() if number <= step]
    stds = _stds_of(used[0])
    steps = [number for number in snapshots if number <= step]
    mixture, distance = reconstruction([(n, power_exponent(own)) for n in steps for own in stds], wanted)
    made: dict[str, Tensor] = {}
    for path, shares in zip(used, mixture.reshape(len(used), len(stds)).tolist()):
        for std_name, tensor in _tensors_of(path).items():
            own, name = std_name.split("|", 1)
            share = shares[stds.index(float(own))]
            made[name] = made.get(name, torch.zeros(())) + share * tensor.double()
    return {name: tensor.float() for name, tensor in made.items()}, distance


def write_variants(folder: Path, stds: Sequence[float], step: int | None = None) -> Iterator[tuple[str, float]]:
    """Write averages beside the weights of a run, as variants, and renew its card: (name, distance) of each.

    Raises:
        UserError: as `reconstruct`; or the folder holds no finished run.
    """
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} must be the output folder of a finished run; it has no {weights.name} in unet.")
    for std in stds:
        tensors, distance = reconstruct(folder, std, step)
        name = "std" + f"{std:.10f}".rstrip("0").replace(".", "")
        with atomic_file(weights.with_suffix(f".{name}.safetensors")) as temporary:
            save_file(tensors, temporary, {"format": "pt"})
        yield name, distance
    write_card(folder)


def _stds_of(path: Path) -> list[float]:
    return sorted({float(name.split("|", 1)[0]) for name in _tensors_of(path)})


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot as they were written, or a UserError."""
    try:
        tensors, metadata = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the snapshot {path} cannot be read ({first_line(error)}): delete it.") from error
    if metadata.get(HASH) not in (None, _digest(tensors)):  # older ones have no hash
        raise UserError(f"the snapshot {path} is not as it was written: delete it.")
    if bad := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise UserError(f"the snapshot {path} holds values that are not numbers, in {bad}: delete it.")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
