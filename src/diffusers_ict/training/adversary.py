"""A discriminator in training: its network, optimizer and update."""

import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.draw import FAKES, INIT, derive_seed
from ..discriminator import ConsistencyDiscriminator
from ..errors import UserError, first_line
from ..formulas.preconditioning import ConsistencyFunction
from ..formulas.time_embedding import hold_fast_columns, zero_fast_columns
from ..objectives.adversarial import Adversarial
from ..objectives.base import Pair
from ..processes import distributed, synchronized
from ..trial import check_config
from .captured import Captured, captured_step
from .optimization import make_optimizer
from .recipe import Recipe, find_shipped
from .unets import discriminator_config


def build_discriminator(recipe: Recipe, unet: nn.Module, objective: Adversarial) -> ConsistencyDiscriminator:
    """A fresh discriminator for the images of a UNet: of the recipe's config, or one like the UNet's encoder.

    Raises:
        UserError: no such config, or it does not fit the images or the classes.
    """
    if not isinstance(unet, UNet2DModel):
        raise UserError(
            f"the discriminator of ACT is made for a UNet2DModel, got {type(unet).__name__}: use another loss."
        )
    config = discriminator_config(dict(unet.config))
    name_or_path = recipe.discriminator_config_name_or_path
    if name_or_path is not None:
        given = _read(name_or_path)
        # Size and channels follow the images where the config does not state them; classes must be stated.
        stated = {"sample_size": config["sample_size"], "in_channels": config["in_channels"], **given}
        for key in ("sample_size", "in_channels", "num_class_embeds"):
            if stated.get(key) != config.get(key):
                raise UserError(
                    f"the discriminator's {key} is {stated.get(key)} and the images need {config.get(key)}: change it "
                    f"in {name_or_path}."
                )
        config = {**given, **{key: config[key] for key in ("sample_size", "in_channels")}}
    config = {**config, "normalized": objective.normalized}
    check_config(ConsistencyDiscriminator, config, "the discriminator")
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(recipe.seed, INIT, FAKES))
        discriminator = ConsistencyDiscriminator.from_config(config)
    if recipe.insensitive_time_embedding:
        zero_fast_columns(discriminator)
        hold_fast_columns(discriminator)
    return discriminator


def _read(name_or_path: str) -> dict:
    try:
        return ConsistencyDiscriminator.load_config(find_shipped(name_or_path))
    except (OSError, ValueError) as error:
        raise UserError(f"no discriminator config could be read from {name_or_path}: {first_line(error)}") from error


class Adversary(ABC):
    """The discriminator D with its optimizer. Each kind of adversarial objective has a subclass.

    Args:
        accelerator: its device and mixed precision are used.
        objective: the settings of the method.
        discriminator: D.
        learning_rate: of D's RAdam.
        compile: compile D; capture: replay its part of a step as CUDA graphs.

    Attributes:
        model: the discriminator; net: the same as its own training calls it; optimizer: of its weights.
        memory: what else of it a checkpoint holds, with `state()` and `load_state()`; or None.
        first_step: the optimizer step, from 0, that it begins with.
    """

    memory: Any = None

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Adversarial,
        discriminator: ConsistencyDiscriminator,
        learning_rate: float = 1e-4,
        compile: bool = False,
        capture: bool = False,
        first_step: int = 0,
    ) -> None:
        self.accelerator, self.first_step = accelerator, first_step
        self.model = discriminator.to(accelerator.device).train()
        betas = (objective.discriminator_beta1, objective.discriminator_beta2)
        self.optimizer = accelerator.prepare(make_optimizer(self.model, learning_rate, betas, capture))
        if compile:
            # The compiler looks at the gradient of its inputs, and an image that f has made has none yet.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
            self.model.compile(fullgraph=True)
        self.net = distributed(self.model, accelerator)
        self.captured: Callable = Captured if capture else lambda function: function
        self.step = captured_step(self.optimizer) if capture else self.optimizer.step

    @contextmanager
    def judging(self) -> Iterator[None]:
        """D as a judge of the generator: its own weights get no gradient."""
        self.model.requires_grad_(False)
        try:
            yield
        finally:
            self.model.requires_grad_(True)

    @abstractmethod
    def generator_loss(self, pair: Pair, batch: Batch) -> Tensor:
        """L_G: [B]. D sees the very image whose consistency is measured. To be called while `judging`."""

    @abstractmethod
    def learner(self, step: int) -> Callable[[ConsistencyFunction, Batch, Batch, int], dict[str, Tensor]]:
        """What adds the gradient of a micro batch at this step: (f, fakes, reals, parts of a step) -> figures."""

    def end_step(self, means: dict[str, Tensor], step: int, images: int) -> dict[str, Tensor | float]:
        """What changes once D has learnt from `images` images of a step, for the figures of the log."""
        return {}

    def update(
        self,
        f: ConsistencyFunction,
        fakes: Iterable[Batch],
        reals: Iterable[Batch],
        step: int,
        parts: int,
        images: int,
    ) -> dict[str, Tensor | float]:
        """One optimizer step of D: separate images from the outputs of f, each at a noise level of its own.

        Args:
            fakes: micro batches that f gets with noise; reals: of other images, of the same sizes.
            parts: micro batches of each.
            step: optimizer step from 0.
            images: of the whole step, those of the generator too.

        Returns:
            Figures for the log, means over this process's micro batches.
        """
        figures: dict[str, list[Tensor]] = defaultdict(list)
        learn = self.learner(step)
        for part, (fake_batch, real_batch) in enumerate(zip(fakes, reals, strict=True), 1):
            torch.manual_seed(fake_batch.dropout_seed)
            with synchronized(self.net, part == parts):
                for name, value in learn(f, fake_batch, real_batch, parts).items():
                    figures[name].append(value)
        self.step()
        self.optimizer.zero_grad(set_to_none=False)  # a captured step finds them where they are
        means = {name: torch.stack(values).mean() for name, values in figures.items()}
        return {**means, **self.end_step(means, step, images)}
