"""Resuming: what a run must have in common with its checkpoint, and what may differ.

A run goes on where its recipe, its data and its networks are those of the checkpoint; a difference is refused, or
recorded with `resume_with_changes`. Another division of the same batch, device or thread count changes rounding, which
gives a warning. Where images and configs are read from changes nothing: their content is compared.
"""

import inspect
import json
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from diffusers import UNet2DModel

from ..autoencoders import fingerprint
from ..data import TrainingData
from ..data.latents import Latents
from ..data.settings import DataSettings
from ..errors import UserError
from ..hub.run_files import run_contents
from ..objectives.adversarial import Adversarial
from ..objectives.base import Objective
from . import checkpoint
from .checkpoint import Checkpoint
from .recipe import Recipe
from .run_settings import FROM_HUB, LATEST, RunSettings

FORMAT = 2  # of what is compared; to be raised when its entries change their names or meanings

# Settings that name something whose content is compared, or that leave the result as it is.
NEUTRAL = {
    *(item.name for settings in (RunSettings, DataSettings) for item in fields(settings)),
    *("config", "model_config_name_or_path", "pretrained_model_name_or_path", "discriminator_config_name_or_path"),
    *("num_train_epochs", "dataloader_num_workers", "pretrained_vae_name_or_path", "vae_sample"),
}
# Settings that decide nothing but rounding.
ROUNDING = (
    *("train_batch_size", "gradient_accumulation_steps", "discriminator_batch_size"),
    *("allow_tf32", "channels_last", "gradient_checkpointing", "torch_compile"),
)


@dataclass
class Identity:
    """What a run is compared by when it is resumed, as JSON types.

    Attributes:
        decisive: everything that decides its result; circumstances: everything that decides its rounding.
        changes: made by resumes with changes: {"step", "setting", "from", "to"} each, `step` steps having been done.
        format: of these entries.
    """

    decisive: dict[str, Any]
    circumstances: dict[str, Any]
    changes: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT


def decisive(
    recipe: Recipe,
    objective: Objective,
    own_objective: str | None,
    data: str,
    batch_size: int,
    networks: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Everything that decides the result of a run, as JSON types.

    Args:
        recipe: resolved; own_objective: description of the caller's objective, or None for the recipe's.
        data: fingerprint of the images.
        batch_size: images of one optimizer step on all processes together.
        networks: configs by the network's name.
    """
    settings = {key: value for key, value in recipe.as_dict().items() if key not in ("objective", *NEUTRAL, *ROUNDING)}
    configs = {
        f"{name} {key}": list(value) if isinstance(value, tuple) else value
        for name, config in networks.items()
        for key, value in config.items()
        if not key.startswith("_")
    }
    fakes = {"fakes in a step": batch_size // recipe.train_batch_size * recipe.discriminator_micro_batch}
    facts = {
        **settings,
        **(objective.settings() if own_objective is None else {}),
        "objective": own_objective,
        "images in a step": batch_size,
        **(fakes if isinstance(objective, Adversarial) else {}),
        "data": data,
        **configs,
    }
    return json.loads(json.dumps(facts, default=str))  # as a checkpoint gives them back


def identity_of(data: TrainingData) -> dict[str, dict[str, Any]]:
    """What decides a run beside the images: of latents, the weights of the autoencoder, and how they are drawn."""
    if not isinstance(data, Latents):
        return {}
    return {"autoencoder": {"weights": fingerprint(data.vae), "latents": "drawn" if data.sampled else "means"}}


def circumstances(recipe: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """Everything that decides the rounding of a run, as JSON types."""
    cuda = accelerator.device.type == "cuda"
    return {
        **{name: getattr(recipe, name) for name in ROUNDING},
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "torch": torch.__version__,
        **({"GPU": torch.cuda.get_device_name()} if cuda else {"threads": torch.get_num_threads()}),
    }


def check_resumes(
    now: dict[str, Any], earlier: dict[str, Any], with_changes: bool = False, elsewhere: str = "`output_dir`"
) -> list[dict[str, Any]]:
    """Check that a run that `now` decides may continue a checkpoint that `earlier` decided.

    A setting that the checkpoint does not have is newer than it, which was made with the default.

    Args:
        elsewhere: what another run has to have of its own.

    Returns:
        The differences, if they are allowed: {"setting", "from", "to"} each.

    Raises:
        UserError: naming the first difference.
    """
    earlier = {**{key: value for key, value in Recipe().as_dict().items() if key in now}, **earlier}
    differing = [key for key in {**earlier, **now} if now.get(key) != earlier.get(key)]
    if differing and not with_changes:
        key = differing[0]
        there, here = ("other images", "these") if key == "data" else (f"{key} {earlier.get(key)}", now.get(key))
        raise UserError(
            f"the checkpoint was made with {there} and this run has {here}: resume with the same recipe, begin a new "
            f"run in another {elsewhere}, or add `resume_with_changes`."
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


def find_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """The checkpoint in the output folder, or of the name that is given; None where there is none, or none is wanted.

    "latest" is the newest usable one. Without any, here and on the Hub, the run begins anew, so that the same command
    line serves a machine that may stop at any time. "hub" finds the same, to be compared with that of the Hub.

    Raises:
        UserError: the named one cannot be used, or the folder holds another run.
    """
    folder, wanted = Path(recipe.output_dir), recipe.resume_from_checkpoint
    if wanted is None:
        return None
    newest = wanted in (LATEST, FROM_HUB)
    saved = checkpoint.load_latest(folder) if newest else checkpoint.load(Path(wanted))
    if (saved is None or wanted == FROM_HUB) and run_contents(folder) and not recipe.resume_with_changes:
        _check_begun_alike(recipe, folder)
    return None if saved is None else check_format(saved)


def check_format(saved: Checkpoint) -> Checkpoint:
    """A checkpoint, if it is of this version.

    Raises:
        UserError: it is of an earlier one.
    """
    if saved.state.get("format") != FORMAT:
        version, commit = (saved.state.get(name) for name in ("version", "commit"))
        which = f"diffusers-ict {version}" if version else "a version of diffusers-ict before 0.1"
        raise UserError(
            f"the checkpoint was made by {which}{f' (commit {commit})' if commit else ''}, whose runs this one cannot "
            "go on with; resume it with that version, or begin a new run with its weights as "
            "`pretrained_model_name_or_path`."
        )
    return saved


def unet_config_of(saved: Checkpoint) -> dict[str, Any] | None:
    """The config of a checkpoint's UNet2DModel, without dropout, which the recipe decides; None for other networks."""
    facts = saved.state.get("decisive", {})
    config = {key.removeprefix("unet "): value for key, value in facts.items() if key.startswith("unet ")}
    known = set(inspect.signature(UNet2DModel).parameters) - {"dropout"}
    return {key: value for key, value in config.items() if key in known} if "down_block_types" in config else None


def check_continues(saved: Checkpoint, recipe: Recipe, identity: Identity, from_hub: bool = False) -> None:
    """Check that a run may continue a checkpoint, and note in its identity what it changes.

    Args:
        from_hub: whether the checkpoint is that of its repository.

    Raises:
        UserError: it was made by another run, or has more steps than this one will have.
    """
    step = saved.state["step"]
    elsewhere = "`output_dir` with another `hub_model_id`" if from_hub else "`output_dir`"
    changes = check_resumes(identity.decisive, saved.state["decisive"], recipe.resume_with_changes, elsewhere)
    if step > recipe.max_train_steps:
        raise UserError(
            f"`max_train_steps` must be at least {step}, the steps of the checkpoint, got {recipe.max_train_steps}."
        )
    warn_of_rounding(identity.circumstances, saved.state["circumstances"])
    identity.changes = [*saved.state["changes"], *({"step": step, **change} for change in changes)]


def _check_begun_alike(recipe: Recipe, folder: Path) -> None:
    """Check that a folder without a usable checkpoint holds the beginning of this very run, and nothing else."""
    try:
        earlier = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        earlier = None
    if not isinstance(earlier, dict):
        raise UserError(f"`output_dir` {folder} holds neither a checkpoint nor a recipe: name another folder.")
    for key, value in recipe.as_dict().items():
        before = {**Recipe().as_dict(), **earlier}[key]  # also of a version that had fewer settings
        if key not in (*NEUTRAL, *ROUNDING) and before != value:
            raise UserError(
                f"`output_dir` {folder} holds no usable checkpoint of this run: its run has {key} {before}, "
                f"and this one {value}; name another folder."
            )
