"""A recipe: every setting of a run, as command line flags, as a YAML file of the same names, and as a record."""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..act import AdversarialWeight
from ..errors import UserError
from ..scheduling_ict import ICTScheduler
from .arguments import ArgumentParser

# What was published for each loss; a setting left out takes its value from here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "ict": {"s0": 10, "s1": 1280, "dropout": 0.3, "adam_beta1": 0.9, "adam_beta2": 0.999},
    "ct": {"s0": 2, "s1": 150, "dropout": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999},
    "act": {"dropout": 0.0, "adam_beta1": 0.0, "adam_beta2": 0.99},
}

# Settings that do not change what is computed: a run may be resumed with other values of these.
PRACTICAL = frozenset(
    "output_dir config validation_steps num_validation_images checkpointing_steps checkpoints_total_limit "
    "image_cache_dir resume_from_checkpoint report_to logging_steps dry_run "
    "license push_to_hub hub_model_id hub_private_repo hub_strategy".split()
)


def setting(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """A field of the recipe with its help text and the values it may take."""
    metadata = {"help": text, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Recipe:
    """Settings of a training run. What is None is resolved from the data or from what was published for the loss."""

    config: str | None = setting(None, "YAML file of settings by these names; flags win over it")

    # The objective.
    loss: str = setting("ict", "what is trained: iCT, CT, or ACT", ("ict", "ct", "act"))
    s0: int | None = setting(None, "pairs of the grid at the beginning [iCT 10, CT 2]")
    s1: int | None = setting(None, "pairs of the grid at the end [iCT 1280, CT 150]")
    p_mean: float = setting(-1.1, "iCT: mean of ln(sigma) when noise levels are drawn")
    p_std: float = setting(2.0, "iCT: standard deviation of ln(sigma)")
    huber_c: float | None = setting(None, "iCT: constant of the pseudo-Huber loss [0.00054 sqrt(C*H*W)]")
    teacher_mu0: float = setting(0.9, "CT: decay of the teacher's EMA at the beginning")
    metric: str = setting("l2", "CT: distance of a pair, squared L2 or LPIPS as published", ("l2", "lpips"))
    lpips_weights: str | None = setting(None, "safetensors of VGG16 and LPIPS [those of the installed lpips package]")
    intermediate_sigmas: list[float] = setting([0.821], "noise levels between sampling steps, in order of use")

    # The second player, with --loss act.
    consistency: str = setting("ct", "ACT: consistency term, CT as published or iCT", ("ct", "ict"))
    adversarial_weight: float = setting(0.3, "ACT: w, share of the adversarial term at the largest noise")
    adversarial_weight_mid: float = setting(0.3, "ACT: w_mid, its share in the middle of the grid")
    adversarial_balance: str = setting(
        "lerp", "ACT: mix unweighted losses, or by their gradients' norms", ("lerp", "gradient")
    )
    discriminator_config_name_or_path: str | None = setting(None, "ACT: its config [one like the UNet's encoder]")
    discriminator_learning_rate: float | None = setting(None, "ACT: of its RAdam [that of the generator]")
    discriminator_beta1: float = setting(0.0, "ACT: first beta of its RAdam")
    discriminator_beta2: float = setting(0.9318, "ACT: second beta of its RAdam")
    discriminator_time_weight: bool = setting(False, "ACT: weight its losses by noise level too, as for ImageNet")
    r1_gamma: float = setting(10.0, "ACT: weight of the gradient penalty")
    r1_interval: int = setting(16, "ACT: steps between gradient penalties")
    augment: bool = setting(False, "ACT-Aug: augment what the discriminator sees")
    augment_tau: float = setting(0.05, "ACT-Aug: gradient penalty above which augmentation grows")
    augment_horizon: int = setting(500_000, "ACT-Aug: images over which its strength could go from 0 to 1")

    # The images.
    dataset_name: str | None = setting(None, "Hub data set, save_to_disk folder, or .parquet, .arrow or .npz file")
    dataset_config_name: str | None = setting(None, "configuration of the Hub data set")
    dataset_split: str = setting("train", "split of the Hub data set")
    train_data_dir: str | None = setting(None, "folder of images; one sub-folder a class when class-conditional")
    image_column: str | None = setting(None, "column of the images, where there are several")
    label_column: str | None = setting(None, "column of the labels, where there are several")
    image_mode: str | None = setting(None, "convert every image to this mode", ("L", "RGB", "RGBA"))
    class_conditional: bool = setting(False, "learn the classes as well")
    resolution: int | None = setting(None, "side of the square images in pixels [that of the data]")
    center_crop: bool = setting(False, "cut the middle out of images that are not square")
    image_cache_dir: str | None = setting(None, "keep decoded images in a file there, for data larger than memory")
    random_flip: bool = setting(False, "mirror half of the images, at random")

    # The network and its optimizer.
    model_config_name_or_path: str | None = setting(None, "UNet2DModel config [one that suits the resolution]")
    pretrained_model_name_or_path: str | None = setting(None, "start from the weights of this model or pipeline")
    insensitive_time_embedding: bool = setting(True, "keep fast frequencies out of the time embedding, as iCT does")
    dropout: float | None = setting(None, "dropout probability of the UNet [iCT 0.3, else 0]")
    dropout_resolution: int | None = setting(None, "dropout only at feature maps of at most this size [all]")
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, more time")
    torch_compile: bool = setting(False, "compile the networks")
    train_batch_size: int = setting(64, "images per process and accumulation part")
    gradient_accumulation_steps: int = setting(1, "parts of the batch of one optimizer step")
    max_train_steps: int = setting(100_000, "optimizer steps K; the curriculum stretches over them")
    learning_rate: float = setting(1e-4, "of RAdam, constant")
    adam_beta1: float | None = setting(None, "first beta of RAdam [0.9, ACT 0]")
    adam_beta2: float | None = setting(None, "second beta of RAdam [0.999, ACT 0.99]")
    mixed_precision: str | None = setting(
        None, "precision inside the networks [that of accelerate's config]", ("no", "fp16", "bf16")
    )
    ema_decays: list[float] = setting([0.9999], "EMA decays; the first is published, the others are its variants")
    ema_warmup: bool = setting(True, "average over the last tenth while the run is shorter than the EMA's memory")
    seed: int = setting(0, "everything random follows from it")

    # The run.
    output_dir: str = setting("consistency-model", "where everything goes")
    validation_steps: int | None = setting(None, "steps between sample grids [only one, at the end]")
    num_validation_images: int = setting(16, "images of a sample grid")
    checkpointing_steps: int = setting(1000, "steps between checkpoints")
    checkpoints_total_limit: int | None = setting(2, "newest checkpoints to keep")
    resume_from_checkpoint: str | None = setting(None, "'latest', or a checkpoint folder")
    report_to: str | None = setting(None, "tracker beside the JSON lines", ("tensorboard", "wandb", "trackio"))
    logging_steps: int = setting(10, "steps between log lines")
    dry_run: bool = setting(False, "print parameters, steps, stages and memory, and stop")
    license: str | None = setting(None, "of the weights, for the model card: a Hub identifier such as cc-by-4.0")
    push_to_hub: bool = setting(False, "publish the result on the Hub")
    hub_model_id: str | None = setting(None, "where: user/name or organisation/name")
    hub_private_repo: bool = setting(False, "if the repository has to be created, create it private")
    hub_token: str | None = setting(None, "better left to `hf auth login` or HF_TOKEN; written nowhere")
    hub_strategy: str = setting("end", "publish at the end, or at every checkpoint too", ("end", "checkpoint"))

    def __post_init__(self) -> None:
        """Resolve what was left out, then check every value.

        Raises:
            UserError: a value out of range.
        """
        published = PUBLISHED[self.loss]
        if self.loss == "act":
            published = {**PUBLISHED[self.consistency], **published}
        for name, value in published.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.discriminator_learning_rate is None:
            self.discriminator_learning_rate = self.learning_rate
        self._check()

    def _check(self) -> None:
        at_least_1 = ("train_batch_size gradient_accumulation_steps max_train_steps num_validation_images "
                      "checkpointing_steps logging_steps validation_steps checkpoints_total_limit resolution s0 s1 "
                      "dropout_resolution r1_interval augment_horizon").split()  # fmt: skip
        positive = "learning_rate discriminator_learning_rate augment_tau p_std huber_c".split()
        below_1 = "dropout adam_beta1 adam_beta2 discriminator_beta1 discriminator_beta2 teacher_mu0".split()
        not_negative = "seed r1_gamma".split()
        for names, allowed, fits in (
            (at_least_1, "at least 1", lambda v: v >= 1),
            (positive, "greater than 0", lambda v: v > 0),
            (below_1, "at least 0 and less than 1", lambda v: 0 <= v < 1),
            (not_negative, "at least 0", lambda v: v >= 0),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise UserError(f"--{name} must be {allowed}, got {value}.")
        if self.push_to_hub and "/" not in (self.hub_model_id or ""):
            raise UserError(f"--push_to_hub needs --hub_model_id USER/NAME, got {self.hub_model_id or 'none'}.")
        decays = self.ema_decays
        if not decays or len(set(decays)) < len(decays) or not all(0 < decay < 1 for decay in decays):
            raise UserError(f"--ema_decays must be different numbers between 0 and 1, got {decays}.")
        try:
            ICTScheduler(intermediate_sigmas=self.intermediate_sigmas)
        except ValueError as error:
            raise UserError(f"--intermediate_sigmas: {error}") from error
        try:
            AdversarialWeight(self.adversarial_weight, self.adversarial_weight_mid)
        except ValueError as error:
            raise UserError(f"--adversarial_weight and --adversarial_weight_mid: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types by flag name, as written to files: no token, and of an absolute path the last part only."""
        return {key: _portable(value) for key, value in dataclasses.asdict(self).items() if key != "hub_token"}

    def computed(self) -> dict[str, Any]:
        """The settings that decide what is computed; a resumed run must agree in all of them."""
        return {key: value for key, value in self.as_dict().items() if key not in PRACTICAL}

    def check_resumes(self, earlier: dict[str, Any]) -> None:
        """Is this the recipe that `earlier`, the `computed()` of a checkpoint, was made with?

        Raises:
            UserError: naming the first setting that differs.
        """
        for key, value in self.computed().items():
            if earlier.get(key) != value:
                raise UserError(
                    f"the checkpoint was made with {key} {earlier.get(key)} and this run has {value}: resume with the "
                    "same recipe, or begin a new run in another --output_dir."
                )


def _portable(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    """One flag for each field of Recipe."""
    parser = ArgumentParser(program, description=description)
    hints = typing.get_type_hints(Recipe)
    for item in dataclasses.fields(Recipe):
        options: dict[str, Any] = {"help": item.metadata["help"], "default": argparse.SUPPRESS}
        kind = hints[item.name]
        if isinstance(kind, types.UnionType):
            kind = next(arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is list:
            options |= {"type": typing.get_args(kind)[0], "nargs": "*"}
        else:
            options |= {"type": kind, "choices": item.metadata["choices"]}
        default = item.default_factory() if item.default is dataclasses.MISSING else item.default
        if default is not None:
            options["help"] += f" [{default}]"
        parser.add_argument(f"--{item.name}", **options)
    return parser


def parse(argv: Sequence[str] | None, program: str, description: str) -> Recipe:
    """Flags, and the YAML file they may name, to a recipe.

    Raises:
        UserError: an unknown flag or key, or a value that is not allowed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(program, description)
    given = vars(parser.parse_args(argv))
    if path := given.get("config"):
        # The file becomes flags in front of the others: one way of checking, and the later flag wins.
        given = vars(parser.parse_args([*_as_flags(Path(path)), *argv]))
    return Recipe(**given)


def _as_flags(path: Path) -> list[str]:
    """The entries of a YAML file as command line flags."""
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the recipe {path} cannot be read: {reason}.") from error
    if not isinstance(entries, dict):
        raise UserError(f"the recipe {path} must be a YAML mapping of flag names to values.")
    known = {item.name: item for item in dataclasses.fields(Recipe)}
    flags: list[str] = []
    for key, value in entries.items():
        if key not in known:
            raise UserError(f"the recipe {path} has the unknown key {key!r}; run with --help for those that exist.")
        if isinstance(value, bool):
            flags.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags
