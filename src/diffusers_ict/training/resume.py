"""Resuming: what a run must have in common with its checkpoint, and what may differ.

Another setting, network or image changes the result, so it is refused, or recorded with `resume_with_changes`. Another
division of the same batch, device or thread count changes rounding, which gives a warning. Where images and configs are
read from changes nothing: their content is compared.
"""

import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from ..errors import UserError
from . import checkpoint
from .checkpoint import Checkpoint
from .output_dir import contents
from .recipe import Recipe
from .state import RunState


@dataclass
class Identity:
    """What a run is compared by when it is resumed, as JSON types.

    Attributes:
        decisive: everything that decides its result; circumstances: everything that decides its rounding.
        changes: made by resumes with changes: {"step", "setting", "from", "to"} each, `step` steps having been done.
    """

    decisive: dict[str, Any]
    circumstances: dict[str, Any]
    changes: list[dict[str, Any]] = field(default_factory=list)


def decisive(
    recipe: Recipe, data: str, batch_size: int, networks: dict[str, dict[str, Any]], objective: str | None
) -> dict[str, Any]:
    """Everything that decides the result of a run, as JSON types.

    Args:
        data: fingerprint of the images.
        batch_size: images of one optimizer step on all processes together.
        networks: configs by the network's name.
        objective: description of the user's own, if there is one.
    """
    configs = {
        f"{name} {key}": value
        for name, config in networks.items()
        for key, value in config.items()
        if not key.startswith("_")
    }
    found = {
        **recipe.changing("result"),
        "objective": objective,
        "images in a step": batch_size,
        **({"fakes in a step": recipe.fakes_in_step(batch_size)} if recipe.loss == "act" else {}),
        "data": data,
        **configs,
    }
    return as_json(found)


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def circumstances(recipe: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """Everything that decides the rounding of a run, as JSON types."""
    device = accelerator.device
    own: dict[str, Any] = {"threads": torch.get_num_threads()}
    if device.type == "cuda":
        own = {"GPU": torch.cuda.get_device_name(device)}
    return {
        **recipe.changing("rounding"),
        "processes": accelerator.num_processes,
        "device": device.type,
        "torch": torch.__version__,
        **own,
    }


def check_resumes(now: dict[str, Any], earlier: dict[str, Any], with_changes: bool = False) -> list[dict[str, Any]]:
    """Check that a run that `now` decides may continue a checkpoint that `earlier` decided.

    A checkpoint that is older than a setting was made with the default of that setting.

    Returns:
        The differences, if they are allowed: {"setting", "from", "to"} each.

    Raises:
        UserError: naming the first difference.
    """
    earlier = {**as_json(Recipe().changing("result")), **earlier}
    differing = [key for key in {**earlier, **now} if now.get(key) != earlier.get(key)]
    if differing and not with_changes:
        key = differing[0]
        what = "other images" if key == "data" else f"{key} {earlier.get(key)}"
        here = "these" if key == "data" else now.get(key)
        raise UserError(
            f"the checkpoint was made with {what} and this run has {here}: resume with the same recipe, begin a new "
            "run in another `output_dir`, or add `resume_with_changes`."
        )
    return [{"setting": key, "from": earlier.get(key), "to": now.get(key)} for key in differing]


def warn_of_rounding(now: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Warn where a resumed run rounds in another way than its checkpoint did."""
    differing = [f"{key} {earlier.get(key)} -> {now[key]}" for key in now if now[key] != earlier.get(key)]
    if differing:
        warnings.warn(
            f"the resumed run rounds otherwise than its checkpoint ({', '.join(differing)}), so it will not repeat the "
            "uninterrupted one bit for bit; with dropout, another micro batch has other masks, too.",
            stacklevel=2,
        )


def resume(recipe: Recipe, state: RunState, identity: Identity) -> tuple[int, float]:
    """Continue from the checkpoint that the recipe names, if any: (steps done, seconds trained).

    Raises:
        UserError: it cannot be used, or was made by another run.
    """
    saved = find_checkpoint(recipe)
    if saved is None:
        return 0, 0.0
    step = saved.state["step"]
    changes = check_resumes(identity.decisive, saved.state["decisive"], recipe.resume_with_changes)
    if step > recipe.max_train_steps:
        raise UserError(
            f"`max_train_steps` must be at least {step}, the steps of the checkpoint, got {recipe.max_train_steps}."
        )
    state.load(saved)
    warn_of_rounding(identity.circumstances, saved.state["circumstances"])
    identity.changes = [*saved.state["changes"], *({"step": step, **change} for change in changes)]
    return step, saved.state["train_seconds"]


def find_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """The checkpoint that a recipe resumes from; None for a run that begins.

    "latest" is the newest usable one. Without any, the run begins anew, so that the same command line serves a machine
    that may stop at any time.

    Raises:
        UserError: the named one cannot be used, or the folder holds another run.
    """
    folder, wanted = Path(recipe.output_dir), recipe.resume_from_checkpoint
    if wanted is None:
        return None
    saved = checkpoint.load_latest(folder) if wanted == "latest" else checkpoint.load(Path(wanted))
    if saved is None and contents(folder) and not recipe.resume_with_changes:
        _check_begun_alike(recipe, folder)
    if saved is not None and not {item.name for item in fields(Identity)} <= saved.state.keys():
        raise UserError("the checkpoint was made by another version of diffusers-ict; resume it with that version.")
    return saved


def _check_begun_alike(recipe: Recipe, folder: Path) -> None:
    """Check that a folder without a usable checkpoint holds the beginning of this very run, and nothing else."""
    try:
        earlier = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        earlier = None
    if not isinstance(earlier, dict):
        raise UserError(f"`output_dir` {folder} holds neither a checkpoint nor a recipe: name another folder.")
    earlier = {**Recipe().changing("result"), **earlier}  # also of a version that had fewer settings
    for key, value in recipe.changing("result").items():
        if earlier[key] != value:
            raise UserError(
                f"`output_dir` {folder} holds no usable checkpoint of this run: its run has {key} {earlier[key]}, "
                f"and this one {value}; name another folder."
            )
