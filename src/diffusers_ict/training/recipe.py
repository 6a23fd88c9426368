"""A recipe: every setting of a run, as command line flags, as a YAML file of the same names, and as a record."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.settings import DataSettings
from ..errors import UserError
from ..files import portable
from ..invocation import command_words
from ..names import shell
from ..objectives import BUILT_IN
from ..settings import ArgumentParser, add_assignments, add_flags, as_flag, check_bounds, default_of, nearest, setting
from .run_settings import RunSettings

# Settings that belong to one data set: data given on the command line replace all of them.
OF_THE_DATA = (
    *("dataset_name", "train_data_dir", "dataset_config_name", "dataset_split", "image_column", "label_column"),
    *("conditioning_image_column", "channels_first"),
)
POLYNOMIAL_END = 1e-7  # where this schedule of diffusers ends
SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe(RunSettings, DataSettings):
    """Settings of a training run. None is resolved from the data, or from what was published for the loss.

    Raises:
        UserError: a value out of range, or two that exclude each other.
    """

    config: str | None = setting(None, "YAML file of settings, or the name of a shipped recipe; flags override it")

    # The objective.
    loss: str = setting("ict", "method", choices=tuple(BUILT_IN))
    objective: dict[str, Any] = setting(
        {},
        "settings of the method [as published, l2 for CT]. ict: s0 s1 p_mean p_std huber_c metric=pseudo-huber|cauchy "
        "cauchy_c; ct: s0 s1 mu0 metric=l2|lpips lpips_weights lpips_below lpips_pooling lpips_clip_target; ect: q "
        "stage_steps stages align_steps p_mean p_std huber_c metric cauchy_c k b; act: consistency adversarial_weight "
        "adversarial_weight_mid r1_gamma r1_interval augment augment_signal augment_tau augment_horizon "
        "discriminator_beta1 discriminator_beta2 discriminator_time_weight, and those of its consistency; "
        "relativistic: consistency share share_exponent start gamma epsilon penalized centring, and those of its "
        "consistency; adcm: trade_off rebuilds align_steps p_mean p_std huber_c adaptive_weight",
    )
    reference_batch_size: int = setting(
        0,
        "average each target over the images of its class among this many others, for less noisy targets; 0 is off",
        at_least=0,
    )
    intermediate_sigmas: list[float] = setting([0.821], "noise levels between sampling steps, in order of use")

    # The images, beside the data settings.
    class_conditional: bool = setting(False, "learn the classes as well")
    label_dropout: float = setting(
        0.0,
        "learn images without their class with this probability, for classifier-free guidance; 0.1 is usual",
        at_least=0,
        below=1,
    )
    learn_residual: bool = setting(
        False, "pairs: learn the difference of each image from its condition, where the two are near, as in restoration"
    )
    random_flip: bool = setting(False, "mirror half of the images, at random")
    streaming: bool = setting(False, "read images during training, not all of them before it: for data of any size")
    shuffle_buffer: int = setting(10_000, "streaming: images per process that are shuffled in memory", at_least=1)
    pretrained_vae_name_or_path: str | None = setting(
        None, "train on the latents of this AutoencoderKL or AutoencoderTiny, which the exported pipeline decodes"
    )
    vae_sample: bool = setting(False, "draw latents from the autoencoder's posterior at each step, not its mean")

    # The network and its optimizer.
    model_config_name_or_path: str | None = setting(None, "UNet2DModel config [one that suits the resolution]")
    pretrained_model_name_or_path: str | None = setting(
        None, "start from this consistency pipeline, or diffusion pipeline (DDPM, DDIM, PNDM)"
    )
    insensitive_time_embedding: bool = setting(True, "keep fast frequencies out of the time embedding, as iCT does")
    dropout: float | None = setting(
        None, "dropout probability of the UNet [that of its config, else iCT 0.3, ECT 0.2, else 0]", at_least=0, below=1
    )
    dropout_resolution: int | None = setting(
        None, "dropout only at feature maps of at most this size [all]", at_least=1
    )
    allow_tf32: bool = setting(
        False, "let float32 matrix products use TF32 on a GPU, as convolutions do anyway: faster, 10 bits of mantissa"
    )
    channels_last: bool = setting(False, "keep activations with channels last: faster on some GPUs")
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, more time")
    torch_compile: bool = setting(False, "compile the networks; on one GPU, replay the steps as CUDA graphs")
    train_batch_size: int = setting(64, "micro batch: images per process and accumulation step", at_least=1)
    gradient_accumulation_steps: int = setting(1, "micro batches of one optimizer step on each process", at_least=1)
    dataloader_num_workers: int = setting(
        0, "processes that fetch images ahead; 0 is best for images that were decoded before", at_least=0
    )
    max_train_steps: int = setting(
        100_000, "optimizer steps K; the curriculum stretches over them", at_least=1, below=1e12
    )
    num_train_epochs: float | None = setting(
        None, "passes over the data, instead of max_train_steps", above=0, below=1e6
    )
    learning_rate: float = setting(1e-4, "learning rate of RAdam", above=0)
    lr_scheduler: str = setting(
        "constant",
        "learning rate after the warm-up; published: constant",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: int = setting(0, "steps over which the learning rate rises linearly", at_least=0)
    max_grad_norm: float | None = setting(
        None, "clip gradients at this multiple of the mean weight of the stage [never, as published]", above=0
    )
    adam_beta1: float | None = setting(None, "first beta of RAdam [0.9, ACT 0]", at_least=0, below=1)
    adam_beta2: float | None = setting(None, "second beta of RAdam [0.999, ACT 0.99]", at_least=0, below=1)
    discriminator_config_name_or_path: str | None = setting(
        None, "ACT: config of its discriminator [one like the UNet's encoder]"
    )
    discriminator_learning_rate: float | None = setting(
        None, "ACT: learning rate of the discriminator's RAdam [that of the generator]", above=0
    )
    discriminator_batch_size: int | None = setting(
        None,
        "ACT: number of fake and of real images in its micro batch [train_batch_size; published: half]",
        at_least=1,
    )
    mixed_precision: str | None = setting(
        None, "precision inside the networks [that of accelerate's config]", choices=("no", "fp16", "bf16")
    )
    ema_decays: list[float] = setting([0.9999], "EMA decays; the first is published, the others are its variants")
    ema_snapshot_steps: int | None = setting(
        None,
        "save snapshots every N steps, from which `diffusers-ict ema` makes averages of any length [none]",
        at_least=1,
    )
    ema_warmup: bool = setting(
        True, "limit the decays at step k to (1 + k) / (10 + k), which matters in runs shorter than the EMA's memory"
    )
    seed: int = setting(0, "seed of all random numbers", at_least=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_publishing()
        if not self.intermediate_sigmas:
            raise UserError("`intermediate_sigmas` must name the second noise level of two steps, got none.")
        if self.reference_batch_size and self.streaming:
            raise UserError("`reference_batch_size` needs images that are read in any order: leave `streaming` out.")
        if self.normalize and self.streaming:
            raise UserError("`normalize` looks at all data before the first step: leave `streaming` out.")
        self._check_latents()
        self._check_pairs()
        if self.gradient_checkpointing and self.torch_compile:
            raise UserError(
                "`gradient_checkpointing` computes passes again, which a graph cannot: leave it or `torch_compile` out."
            )
        least = min(self.learning_rate, self.discriminator_learning_rate or self.learning_rate)
        if self.lr_scheduler == "polynomial" and least <= POLYNOMIAL_END:
            raise UserError(
                f"`lr_scheduler` polynomial falls to {POLYNOMIAL_END:g}, so that `learning_rate` must be larger, got "
                f"{least:g}; take linear, which falls to 0."
            )
        decays = self.ema_decays
        if not decays or len(set(decays)) < len(decays) or not all(0 < decay < 1 for decay in decays):
            raise UserError(f"`ema_decays` must be different numbers between 0 and 1, got {decays}.")

    def _check_pairs(self) -> None:
        """Refuse, by a UserError, what has no meaning beside given images or without them."""
        if self.conditioning_image_mode and not self.conditioning_image_column:
            raise UserError(
                "`conditioning_image_mode` is for pairs, which `conditioning_image_column` makes: leave it out."
            )
        if self.conditioning_image_column and self.streaming:
            raise UserError("`conditioning_image_column` needs images that are read before: leave `streaming` out.")

    def _check_latents(self) -> None:
        """Refuse, by a UserError, what has no meaning beside an autoencoder or without one."""
        if self.pretrained_vae_name_or_path is None:
            if self.vae_sample:
                raise UserError("`vae_sample` draws latents: name an autoencoder as `pretrained_vae_name_or_path`.")
            return
        if self.normalize:
            raise UserError("an autoencoder encodes pictures: leave `normalize` or `pretrained_vae_name_or_path` out.")
        if self.streaming:
            raise UserError("latents are encoded once, before the first step: leave `streaming` out.")
        if self.conditioning_image_column:
            raise UserError(
                "pairs are of pixels: leave `conditioning_image_column` or `pretrained_vae_name_or_path` out."
            )
        if self.pretrained_model_name_or_path:
            raise UserError(
                "a model of latents begins afresh: leave `pretrained_model_name_or_path` or "
                "`pretrained_vae_name_or_path` out."
            )

    def images_in_step(self, processes: int) -> int:
        """Images of one optimizer step on so many processes together."""
        return self.train_batch_size * self.gradient_accumulation_steps * processes

    @property
    def discriminator_micro_batch(self) -> int:
        """ACT: fakes, and as many images, of the discriminator's micro batch."""
        return self.discriminator_batch_size or self.train_batch_size

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types by flag name, as written to files; of an absolute path the last part only."""
        return {key: _portable(value) for key, value in dataclasses.asdict(self).items()}

    def command(self) -> str:
        """The command line of this recipe: every setting that is not the default, absolute paths by their last part."""
        plain, free = Recipe().as_dict(), {item.name for item in dataclasses.fields(RunSettings)} | {"config"}
        words = command_words("train")
        for key, value in self.as_dict().items():
            if key not in free and value not in (plain[key], {}):
                words += as_flag(key, value)
        return shell([*words, *as_flag("output_dir", portable(self.output_dir))])


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    return portable(value) if isinstance(value, str) else value


GROUPS = {
    "the images": DataSettings,
    "the method, the network and its optimizer": Recipe,
    "the run: where it writes, and what it keeps, logs and publishes": RunSettings,
}
SHORT = {  # flags for settings of a method, which --help does not list: --s0 2 is --objective s0=2
    **{name: name for name in ("s0", "s1", "p_mean", "p_std", "huber_c", "metric", "lpips_weights", "align_steps")},
    **{name: name for name in ("stage_steps", "stages", "consistency", "adversarial_weight", "r1_gamma")},
    **{"ect_q": "q", "teacher_mu0": "mu0"},
}
START_HERE = (
    *("train_data_dir", "dataset_name", "class_conditional", "resolution", "center_crop"),
    *("config", "max_train_steps", "train_batch_size", "output_dir", "dry_run"),
)


def parse(argv: Sequence[str] | None, program: str, about: str | None) -> Recipe:
    """Flags, and the YAML file they may name, to a recipe; `about`: docstring of the program.

    Raises:
        UserError: an unknown flag or key, or a value that is not allowed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = ArgumentParser(program, about)
    add_flags(parser, GROUPS, START_HERE)
    add_assignments(parser, "objective", SHORT)
    given = vars(parser.parse_args(argv))
    if path := given.get("config"):
        # The file becomes flags in front of the others: one way of checking, and the later flag wins.
        from_file = vars(parser.parse_args(_file_as_flags(find_recipe(path))))
        if given.keys() & {"dataset_name", "train_data_dir"}:  # other data than the recipe's
            from_file = {name: value for name, value in from_file.items() if name not in OF_THE_DATA}
        if given.get("loss", from_file.get("loss", "ict")) == from_file.get("loss", "ict"):
            given["objective"] = {**from_file.get("objective", {}), **given.get("objective", {})}
        else:  # another method has other settings
            from_file.pop("objective", None)
        given = {**from_file, **given}
    return Recipe(**given)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that is shipped with the package.

    Raises:
        UserError: there is none.
    """
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        names = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
        hint = f"; try {near}" if (near := nearest(name, names)) else ""
        raise UserError(f"`config` must be a YAML file, or one of {', '.join(names)}, got {name}{hint}.")
    return path


def find_shipped(name_or_path: str) -> Path:
    """A path as it is if it exists, else the shipped file of that name if there is one."""
    path = Path(name_or_path)
    shipped = SHIPPED / path.name
    return shipped if not path.exists() and shipped.is_file() else path


def _file_as_flags(path: Path) -> list[str]:
    """The entries of a YAML file as command line flags; files that it names are looked for beside it."""
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the recipe {path} cannot be read: {reason}.") from error
    if not isinstance(entries, dict):
        raise UserError(f"the recipe {path} must be a YAML mapping of flag names to values.")
    known = {item.name for item in dataclasses.fields(Recipe)}
    flags: list[str] = []
    for key, value in entries.items():
        if key not in known:
            near = nearest(str(key), known)
            others = "settings of a method go into its block `objective`, and the help of the program lists the others"
            hint = f"try {near}" if near else others
            raise UserError(f"the recipe {path} has the unknown key {key!r}: {hint}.")
        if value is None:
            continue
        if not isinstance(value, _plain_types(key)):
            wanted = {dict: "a mapping of settings", list: "a list"}.get(_plain_types(key), "a single value")
            raise UserError(f"`{key}` of the recipe {path} must be {wanted}, got {value!r}.")
        if value is False and key in ("mixed_precision", "report_to"):
            value = "no"  # as YAML reads it
        if key.endswith("_config_name_or_path") and isinstance(value, str) and (path.parent / value).is_file():
            value = str(path.parent / value)
        flags += as_flag(key, value)
    return flags


def _plain_types(key: str) -> Any:
    """What YAML may give for a setting."""
    (default,) = (default_of(item) for item in dataclasses.fields(Recipe) if item.name == key)
    return type(default) if isinstance(default, (dict, list)) else (str, int, float, bool)
