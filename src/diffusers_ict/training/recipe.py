"""A recipe: every setting of a run, as command line flags, as a YAML file of the same names, and as a record."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.settings import DataSettings
from ..errors import UserError
from ..files import portable
from ..objectives.methods import METHODS
from ..settings import ArgumentParser, add_flags, as_flag, check_bounds, setting
from .adversarial_settings import AUGMENT_TAU, AdversarialSettings
from .run_settings import RunSettings

# Settings that belong to one data set: data given on the command line replace all of them.
OF_THE_DATA = ("dataset_name", "train_data_dir", "dataset_config_name", "dataset_split", "image_column", "label_column")
SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(kw_only=True)
class Recipe(RunSettings, AdversarialSettings, DataSettings):
    """Settings of a training run. None is resolved from the data, or from what was published for the loss."""

    config: str | None = setting(
        None, "YAML file of settings, or the name of a shipped recipe; flags win over it", changes="nothing"
    )

    # The objective.
    loss: str = setting("ict", "method: iCT, ECT, CT, or ACT", choices=tuple(METHODS))
    consistency: str = setting("ct", "ACT: consistency term, CT as published, iCT or ECT", choices=("ct", "ict", "ect"))
    s0: int = setting(
        None,
        "size of the grid at the beginning: pairs of iCT [10], levels of CT [2]",
        at_least=1,
        published={"ict": 10, "ct": 2},
    )
    s1: int = setting(
        None, "pairs of the grid at the end [iCT 1280, CT 150]", at_least=1, published={"ict": 1280, "ct": 150}
    )
    p_mean: float = setting(-1.1, "iCT, ECT: mean of ln(sigma) when noise levels are drawn")
    p_std: float = setting(2.0, "iCT, ECT: standard deviation of ln(sigma)", above=0)
    huber_c: float | None = setting(
        None,
        "constant of the pseudo-Huber loss [iCT 0.00054 sqrt(C*H*W), ECT 0]",
        at_least=0,
        below=1e6,
        published={"ect": 0.0},
    )
    ect_q: float = setting(
        2.0,
        "ECT: divides the gap between the levels at each stage: 2 for runs with several stages, 256 as published for a "
        "short run of one stage from a diffusion model",
        at_least=1.1,
        below=1e6,
    )
    ect_stage_images: int | None = setting(
        None, "ECT: images of a stage [an eighth of the run after the alignment]", at_least=1
    )
    align_steps: int | None = setting(
        None,
        "ECT: steps at the beginning that train a denoiser, before the stages [500 from a diffusion model that "
        "predicts noise or images, else 0]",
        at_least=0,
    )
    teacher_mu0: float = setting(0.9, "CT: decay of the teacher's EMA at the beginning", at_least=0, below=1)
    metric: str = setting("l2", "CT: distance of a pair, squared L2 or LPIPS as published", choices=("l2", "lpips"))
    lpips_weights: str | None = setting(None, "safetensors of VGG16 and LPIPS [those of the installed lpips package]")
    intermediate_sigmas: list[float] = setting([0.821], "noise levels between sampling steps, in order of use")

    # The images, beside the data settings.
    class_conditional: bool = setting(False, "learn the classes as well")
    random_flip: bool = setting(False, "mirror half of the images, at random")
    streaming: bool = setting(False, "read images while training, instead of all of them before: for data of any size")
    shuffle_buffer: int = setting(10_000, "streaming: images per process that are shuffled in memory", at_least=1)

    # The network and its optimizer.
    model_config_name_or_path: str | None = setting(
        None, "UNet2DModel config [one that suits the resolution]", changes="content"
    )
    pretrained_model_name_or_path: str | None = setting(
        None, "start from this consistency pipeline, or diffusion pipeline (DDPM, DDIM, PNDM)", changes="content"
    )
    insensitive_time_embedding: bool = setting(True, "keep fast frequencies out of the time embedding, as iCT does")
    dropout: float | None = setting(
        None, "dropout probability of the UNet [that of its config, else iCT 0.3, ECT 0.2, else 0]", at_least=0, below=1
    )
    dropout_resolution: int | None = setting(
        None, "dropout only at feature maps of at most this size [all]", at_least=1
    )
    allow_tf32: bool = setting(
        False,
        "let float32 matrix products use TF32 on a GPU, as convolutions do anyway: faster, 10 bits of mantissa",
        changes="rounding",
    )
    channels_last: bool = setting(
        False, "keep activations with channels last, as convolutions of some GPUs want them", changes="rounding"
    )
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, more time", changes="rounding")
    torch_compile: bool = setting(
        False, "compile the losses; on one GPU, replay the steps as CUDA graphs", changes="rounding"
    )
    train_batch_size: int = setting(
        64, "micro batch: images per process and accumulation step", at_least=1, changes="rounding"
    )
    gradient_accumulation_steps: int = setting(
        1, "micro batches of one optimizer step on each process", at_least=1, changes="rounding"
    )
    max_train_steps: int = setting(
        100_000, "optimizer steps K; the curriculum stretches over them", at_least=1, below=1e12
    )
    num_train_epochs: float | None = setting(
        None, "passes over the data, instead of max_train_steps", above=0, below=1e6
    )
    learning_rate: float = setting(1e-4, "learning rate of RAdam", above=0)
    lr_scheduler: str = setting(
        "constant", "learning rate after the warm-up; published: constant", choices=("constant", "linear", "cosine")
    )
    lr_warmup_steps: int = setting(0, "steps over which the learning rate rises linearly", at_least=0)
    max_grad_norm: float | None = setting(
        None, "clip gradients at this multiple of the mean weight of the stage [never, as published]", above=0
    )
    adam_beta1: float = setting(
        None,
        "first beta of RAdam [0.9, ACT 0]",
        at_least=0,
        below=1,
        published={"ict": 0.9, "ect": 0.9, "ct": 0.9, "act": 0.0},
    )
    adam_beta2: float = setting(
        None,
        "second beta of RAdam [0.999, ACT 0.99]",
        at_least=0,
        below=1,
        published={"ict": 0.999, "ect": 0.999, "ct": 0.999, "act": 0.99},
    )
    mixed_precision: str | None = setting(
        None, "precision inside the networks [that of accelerate's config]", choices=("no", "fp16", "bf16")
    )
    ema_decays: list[float] = setting([0.9999], "EMA decays; the first is published, the others are its variants")
    ema_snapshot_steps: int | None = setting(
        None, "save snapshots every N steps, from which ema.py makes averages of any length [none]", at_least=1
    )
    ema_warmup: bool = setting(True, "average over the last tenth while the run is shorter than the EMA's memory")
    seed: int = setting(0, "everything random follows from it", at_least=0)

    def __post_init__(self) -> None:
        """Resolve what was left out, then check every value.

        Raises:
            UserError: a value out of range.
        """
        for item in dataclasses.fields(self):
            for loss in dict.fromkeys((self.loss, self.consistency_loss)):
                if getattr(self, item.name) is None and loss in item.metadata["published"]:
                    setattr(self, item.name, item.metadata["published"][loss])
        self._check()
        if self.loss == "act":
            for name, value in self._followed().items():
                if getattr(self, name) is None:
                    setattr(self, name, value)

    def _followed(self) -> dict[str, Any]:
        """Settings of the discriminator that follow others where they are left out."""
        return {
            "discriminator_learning_rate": self.learning_rate,
            "discriminator_batch_size": self.train_batch_size,
            "augment_tau": AUGMENT_TAU[self.augment_signal],
        }

    def _check(self) -> None:
        check_bounds(self)
        self.check_publishing()
        if not self.intermediate_sigmas:
            raise UserError("`intermediate_sigmas` must name the second noise level of two steps, got none.")
        if self.gradient_checkpointing and self.torch_compile:
            raise UserError(
                "`gradient_checkpointing` computes passes again, which a graph cannot: leave it or `torch_compile` out."
            )
        if None not in (self.s0, self.s1) and self.s1 < self.s0:
            raise UserError(f"`s1` must be at least `s0`, got s1 {self.s1} and s0 {self.s0}.")
        if self.align_steps and self.consistency_loss != "ect":
            raise UserError(
                f"`align_steps` belongs to ECT, got {self.align_steps} and {self.consistency_loss}: choose `loss` ect, "
                "or `loss` act with `consistency` ect, or leave it out."
            )
        decays = self.ema_decays
        if not decays or len(set(decays)) < len(decays) or not all(0 < decay < 1 for decay in decays):
            raise UserError(f"`ema_decays` must be different numbers between 0 and 1, got {decays}.")

    @property
    def consistency_loss(self) -> str:
        """The loss that compares the outputs of a pair: with ACT, that of its consistency term."""
        return self.consistency if self.loss == "act" else self.loss

    def images_in_step(self, processes: int) -> int:
        """Images of one optimizer step on so many processes together."""
        return self.train_batch_size * self.gradient_accumulation_steps * processes

    def fakes_in_step(self, batch_size: int) -> int:
        """ACT: fakes that the discriminator judges in a step whose generator sees so many images."""
        return batch_size // self.train_batch_size * self.discriminator_batch_size

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types by flag name, as written to files; of an absolute path the last part only."""
        entries = dataclasses.asdict(self).items()
        return {key: portable(value) if isinstance(value, str) else value for key, value in entries}

    def changing(self, *kinds: str) -> dict[str, Any]:
        """The settings that change the "result", the "rounding", the "content", or "nothing" of a run."""
        chosen = {item.name for item in dataclasses.fields(self) if item.metadata["changes"] in kinds}
        return {key: value for key, value in self.as_dict().items() if key in chosen}

    def computed(self) -> dict[str, Any]:
        """The settings that decide what is computed."""
        return self.changing("result", "content", "rounding")

    def command(self) -> str:
        """The command line of this recipe: every setting that is not the default, absolute paths by their last part."""
        plain = Recipe(loss=self.loss, consistency=self.consistency).computed()
        if self.loss == "act":
            plain |= self._followed()
        words = ["accelerate", "launch", "train_scripts/train_ict.py"]
        if self.loss != "ict":
            words += as_flag("loss", self.loss)
        if self.loss == "act":
            words += as_flag("consistency", self.consistency)
        for key, value in self.computed().items():
            if value != plain[key]:
                words += as_flag(key, value)
        return shlex.join([*words, *as_flag("output_dir", portable(self.output_dir))])


GROUPS = {
    "the images": DataSettings,
    "the run: where it writes, and what it keeps, logs and publishes": RunSettings,
    "the method, the network and its optimizer": Recipe,
    "the discriminator of ACT": AdversarialSettings,
}


def parse(argv: Sequence[str] | None, program: str, about: str | None) -> Recipe:
    """Flags, and the YAML file they may name, to a recipe; `about`: docstring of the program.

    Raises:
        UserError: an unknown flag or key, or a value that is not allowed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = ArgumentParser(program, about)
    add_flags(parser, GROUPS)
    given = vars(parser.parse_args(argv))
    if path := given.get("config"):
        # The file becomes flags in front of the others: one way of checking, and the later flag wins.
        from_file = vars(parser.parse_args(_file_as_flags(find_recipe(path))))
        if given.keys() & {"dataset_name", "train_data_dir"}:  # other data than the recipe's
            from_file = {name: value for name, value in from_file.items() if name not in OF_THE_DATA}
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
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
        raise UserError(f"`config` must be a YAML file, or one of {names}, got {name}.")
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
            raise UserError(
                f"the recipe {path} has the unknown key {key!r}; see the help of the program for those that exist."
            )
        if key.endswith("_config_name_or_path") and isinstance(value, str) and (path.parent / value).is_file():
            value = str(path.parent / value)
        if value is not None:
            flags += as_flag(key, value)
    return flags
