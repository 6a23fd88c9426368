"""ACT's discriminator in training: its network, optimizer and update, and the strength of the augmentation."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.draw import FAKES, INIT, derive_seed
from ..discriminator import ConsistencyDiscriminator
from ..errors import UserError, first_line
from ..formulas.augmentation import augment
from ..formulas.preconditioning import ConsistencyFunction, per_image
from ..formulas.time_embedding import hold_fast_columns, zero_fast_columns
from ..objectives.act import (
    ACT,
    discriminator_logits,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    weighted_lerp,
)
from ..objectives.base import Pair
from ..processes import distributed, in_precision, synchronized
from ..trial import check_config
from .captured import Captured, captured_step
from .optimization import make_optimizer
from .recipe import Recipe, find_shipped
from .unets import discriminator_config


def build_discriminator(recipe: Recipe, unet: nn.Module) -> ConsistencyDiscriminator:
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


class Adversary:
    """The discriminator D with its optimizer.

    Args:
        accelerator: its device and mixed precision are used.
        act: the settings of the method.
        discriminator: D.
        learning_rate: of D's RAdam.
        compile: compile D; capture: replay its part of a step as CUDA graphs.

    Attributes:
        model: the discriminator; optimizer; strength: of the augmentation, or None.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        act: ACT,
        discriminator: ConsistencyDiscriminator,
        learning_rate: float = 1e-4,
        compile: bool = False,
        capture: bool = False,
    ) -> None:
        self.accelerator, self.act, self.strength = accelerator, act, act.strength(accelerator.device)
        self.model = discriminator.to(accelerator.device).train()
        betas = (act.discriminator_beta1, act.discriminator_beta2)
        self.optimizer = accelerator.prepare(make_optimizer(self.model, learning_rate, betas, capture))
        if compile:
            # The compiler looks at the gradient of its inputs, and an image that f has made has none yet.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
            self.model.compile(fullgraph=True)
        self.net = distributed(self.model, accelerator)
        # One judges for the generator, and its weights get no gradient; the other one learns.
        self.judge, self.learner = in_precision(self.model, accelerator), in_precision(self.net, accelerator)
        repeated = Captured if capture else lambda function: function
        self.learn = {penalised: repeated(partial(self._learn, penalised=penalised)) for penalised in (False, True)}
        self.step = captured_step(self.optimizer) if capture else self.optimizer.step

    @contextmanager
    def judging(self) -> Iterator[None]:
        """D as a judge of the generator: its own weights get no gradient."""
        self.model.requires_grad_(False)
        try:
            yield
        finally:
            self.model.requires_grad_(True)

    def generator_loss(self, pair: Pair, batch: Batch) -> Tensor:
        """L_G: [B]. D sees the very image whose consistency is measured. To be called while `judging`."""
        logits = discriminator_logits(self.judge, self._seen(pair.student, batch), batch.sigma_next, batch.labels)
        return weighted_lerp(self.act, pair, generator_loss(logits), self.act.weight(pair.sigma_next))

    def losses(self, f: ConsistencyFunction, fakes: Batch, reals: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D [B] of images that f makes and of real ones, each at levels of its own, and figures for the log.

        The figures are the share of images classified correctly, and the mean sign of the logits on real images.
        """
        with torch.no_grad():
            fake = f(fakes.x + per_image(fakes.sigma_next, fakes.x) * fakes.noise, fakes.sigma_next, fakes.labels)
        logits_fake, logits_real = (
            discriminator_logits(self.learner, self._seen(images, batch), batch.sigma_next, batch.labels)
            for images, batch in ((fake, fakes), (reals.x, reals))
        )
        figures = {
            "discriminator_accuracy": torch.cat([logits_fake < 0, logits_real > 0]).float().mean(),
            "discriminator_sign": logits_real.detach().sign().mean(),
        }
        return discriminator_loss(logits_fake, logits_real, self._weight(fakes), self._weight(reals)), figures

    def penalty(self, reals: Batch) -> Tensor:
        """R1 on real images: [B]. Its weight is gamma alone, not gamma times the interval.

        D is neither compiled here, which has no second derivatives, nor in half precision, which has too few bits.
        """
        seen = self._seen(reals.x, reals)
        penalty = r1_penalty(self.model.forward, seen, reals.sigma_next, reals.labels, self.act.r1_gamma)
        return penalty * self._weight(reals)

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
            fakes: micro batches that f gets with noise; reals: of images that D gets as they are, of the same sizes.
            parts: micro batches of each.
            step: optimizer step from 0; every `r1_interval`-th has a gradient penalty and moves the augmentation.
            images: of the whole step, those of the generator too: they set the pace of the augmentation.

        Returns:
            Figures for the log, means over this process's micro batches.
        """
        figures: dict[str, list[Tensor]] = defaultdict(list)
        penalised = (step + 1) % self.act.r1_interval == 0
        for part, (fake_batch, real_batch) in enumerate(zip(fakes, reals, strict=True), 1):
            torch.manual_seed(fake_batch.dropout_seed)
            with synchronized(self.net, part == parts):
                for name, value in self.learn[penalised](f, fake_batch, real_batch, parts).items():
                    figures[name].append(value)
        self.step()
        self.optimizer.zero_grad(set_to_none=False)  # a captured step finds them where they are
        means: dict[str, Tensor | float] = {name: torch.stack(values).mean() for name, values in figures.items()}
        if penalised and self.strength is not None:
            driving = means["r1" if self.act.augment_signal == "penalty" else "discriminator_sign"]
            self.strength.update(self.accelerator.reduce(driving, "mean"), images * self.act.r1_interval)
            p, r = self.strength.p.clone(), self.strength.r.clone()  # which move on before they are logged
            means |= {"augment_p": p, "augment_r": r, "augment_tau": self.strength.tau}
        return means

    def _learn(
        self, f: ConsistencyFunction, fakes: Batch, reals: Batch, parts: int, penalised: bool
    ) -> dict[str, Tensor]:
        """Add the gradient of one micro batch, one of so many parts of a step; figures for the log."""
        loss, figures = self.losses(f, fakes, reals)
        figures["discriminator_loss"] = loss.detach().mean()
        if penalised:
            penalty = self.penalty(reals)
            figures["r1"] = penalty.detach().mean()
            loss = loss + penalty
        self.accelerator.backward(loss.mean() / parts)
        return figures

    def _seen(self, images: Tensor, batch: Batch) -> Tensor:
        """What D sees of images: the images, augmented where the strength says so."""
        if self.strength is None or batch.uniform is None:
            return images
        return augment(images, self.strength.p, batch.uniform)

    def _weight(self, batch: Batch) -> Tensor | float:
        return self.act.weight.rising(batch.sigma_next) if self.act.discriminator_time_weight else 1.0
