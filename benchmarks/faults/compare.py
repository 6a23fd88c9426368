"""Two output folders side by side, and what must not be left after a run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors.numpy import load_file

from diffusers_ict.training import checkpoint

from .children import Lost

# What depends on the clock, or on the content of files that do.
OF_TIME = {"train_seconds", "images_per_second", "state.json"}
LINES_OF_TIME = re.compile(r"^\| time \|.*$|^<!-- diffusers-ict:training .*$", re.M)


def _without_time(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_time(value) for key, value in data.items() if key not in OF_TIME}
    return [_without_time(value) for value in data] if isinstance(data, list) else data


def content(path: Path) -> Any:
    """What a file holds, without what depends on the clock."""
    if path.suffix == ".json":
        return _without_time(json.loads(path.read_text("utf-8")))
    if path.suffix == ".jsonl":
        return [_without_time(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return LINES_OF_TIME.sub("", path.read_text("utf-8")) if path.suffix == ".md" else path.read_bytes()


def tree(folder: Path) -> dict[str, Any]:
    """The content of every file below a folder by its path."""
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}


def check_same(whole: Path, out: Path, ignore: str = "$^") -> None:
    """Check that two folders hold the same files with the same content, bit for bit where it is not text.

    Args:
        ignore: pattern of paths that may differ.

    Raises:
        Lost: naming what differs, is missing, or is left over.
    """
    there, here = (
        {path: held for path, held in tree(folder).items() if not re.search(ignore, path)} for folder in (whole, out)
    )
    missing, left = sorted(there.keys() - here.keys()), sorted(here.keys() - there.keys())
    different = sorted(path for path in there.keys() & here.keys() if there[path] != here[path])
    if missing or left or different:
        raise Lost(f"missing {missing}, left over {left}, different {different}")


def check_close(whole: Path, out: Path) -> None:
    """Check that the last checkpoints and the logs of two runs agree up to rounding.

    Raises:
        Lost: naming a tensor that does not.
    """
    there, here = (_numbers(folder) for folder in (whole, out))
    if there.keys() != here.keys():
        raise Lost(f"only one of both has {sorted(there.keys() ^ here.keys())}")
    for name, value in there.items():
        if not np.allclose(here[name], value, rtol=1e-3, atol=2e-5):
            raise Lost(f"{name} differs by {np.abs(here[name] - value).max():.3g}")


def _numbers(folder: Path) -> dict[str, np.ndarray]:
    newest = checkpoint.list_checkpoints(folder)[0]
    tensors = {f"{file.stem}/{key}": v for file in newest.glob("*.safetensors") for key, v in load_file(file).items()}
    log = content(folder / "log.jsonl")
    return {**tensors, **{name: np.array([entry[name] for entry in log]) for name in ("step", "loss")}}


OF_OTHERS = (".ses",)  # temporary files of onnxruntime, which diffusers imports where it is installed


def check_nothing_left(place: Path) -> None:
    """Check that a place has no temporary files and no lock that is held.

    Raises:
        Lost: naming what is left.
    """
    left = [str(p.relative_to(place)) for p in place.rglob("*") if p.name.endswith(".tmp")]
    left += [str(p.relative_to(place)) for p in (place / "tmp").glob("*") if p.name not in OF_OTHERS]
    if left:
        raise Lost(f"left over {left}")
    for lock in place.rglob(".lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            raise Lost(f"{lock} is held") from None


def check_between(out: Path) -> None:
    """Check a folder in the middle of a fault: only the oldest checkpoints may be in pieces, being deleted.

    Raises:
        Lost: naming a checkpoint that is not good, or that temporary folders gather.
    """
    found = [(path.name, checkpoint.find_corruption(path)) for path in checkpoint.list_checkpoints(out)]
    torn = [name for name, reason in found if reason is not None]
    if torn and torn != [name for name, _ in found][-len(torn) :]:
        raise Lost(f"damaged although newer than a good one: {torn}")
    if found and len(torn) == len(found):
        raise Lost(f"no good checkpoint is left of {torn}")
