"""ACT's discriminator in training: its network, optimizer and update, and the strength of the augmentation."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor

from ..data.batch import Batch, GlobalBatch
from ..data.draw import FAKES, INIT, derive_seed
from ..discriminator import ConsistencyDiscriminator
from ..errors import UserError, first_line
from ..formulas.augmentation import augment
from ..formulas.preconditioning import ConsistencyFunction, per_image
from ..formulas.time_embedding import hold_fast_columns, zero_fast_columns
from ..objectives.act import (
    AdaptiveStrength,
    AdversarialWeight,
    discriminator_logits,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    weighted_lerp,
)
from ..objectives.base import Objective, Pair
from ..processes import GradientMean, network_precision
from .captured import Captured, can_capture, captured_step
from .optimization import make_optimizer
from .recipe import Recipe, find_shipped
from .unets import discriminator_config


def build_discriminator(recipe: Recipe, unet: UNet2DModel) -> ConsistencyDiscriminator:
    """A fresh discriminator for the images of a UNet: of the recipe's config, or one like the UNet's encoder.

    Raises:
        UserError: no such config, or it does not fit the images or the classes.
    """
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
    try:
        with torch.random.fork_rng([]):
            torch.manual_seed(derive_seed(recipe.seed, INIT, FAKES))
            discriminator = ConsistencyDiscriminator.from_config(config)
    except ValueError as error:
        raise UserError(f"the discriminator does not fit the images: {error}") from error
    if recipe.insensitive_time_embedding:
        zero_fast_columns(discriminator)
        hold_fast_columns(discriminator)
    return discriminator


def _read(name_or_path: str) -> dict:
    try:
        return ConsistencyDiscriminator.load_config(find_shipped(name_or_path))
    except (OSError, ValueError) as error:
        raise UserError(f"no discriminator config could be read from {name_or_path}: {first_line(error)}") from error


def make_adversary(
    recipe: Recipe, accelerator: Accelerator, discriminator: ConsistencyDiscriminator, weight: AdversarialWeight
) -> "Adversary":
    """The adversary that a recipe asks for, on the accelerator's device."""
    strength = None
    if recipe.augment:
        strength = AdaptiveStrength(recipe.augment_tau, recipe.augment_horizon, accelerator.device)
    return Adversary(
        accelerator,
        discriminator,
        weight,
        learning_rate=recipe.discriminator_learning_rate,
        betas=(recipe.discriminator_beta1, recipe.discriminator_beta2),
        r1_gamma=recipe.r1_gamma,
        r1_interval=recipe.r1_interval,
        time_weight=recipe.discriminator_time_weight,
        strength=strength,
        signal=recipe.augment_signal,
        compile=recipe.torch_compile,
        capture=can_capture(recipe, accelerator),
    )


class Adversary:
    """The discriminator D with its optimizer.

    Args:
        accelerator: its device and mixed precision are used.
        discriminator: D.
        weight: lambda_N of the adversarial term.
        learning_rate, betas: of D's RAdam.
        r1_gamma, r1_interval: weight of the gradient penalty, and steps between two of them.
        time_weight: weight D's losses by noise level too.
        strength: of ACT-Aug; None for no augmentation.
        signal: that drives the strength: "penalty", R1 as in ACT, or "sign", the mean sign of D's logits on images, as
            in ADA (arXiv:2006.06676, Eq. 1).
        compile: compile the losses; capture: replay D's part of a step as CUDA graphs.

    Attributes:
        model: the discriminator; optimizer; strength.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        discriminator: ConsistencyDiscriminator,
        weight: AdversarialWeight,
        *,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.0, 0.9318),
        r1_gamma: float = 10.0,
        r1_interval: int = 16,
        time_weight: bool = False,
        strength: AdaptiveStrength | None = None,
        signal: str = "penalty",
        compile: bool = False,
        capture: bool = False,
    ) -> None:
        self.accelerator, self.weight, self.strength, self.signal = accelerator, weight, strength, signal
        self.r1_gamma, self.r1_interval, self.time_weight = r1_gamma, r1_interval, time_weight
        self.model = discriminator.to(accelerator.device).train()
        self.device, self.precision = accelerator.device.type, network_precision(accelerator)
        optimizer = make_optimizer(self.model.parameters(), learning_rate, betas, capture)
        self.gradients = GradientMean(accelerator, self.model.parameters())
        self.optimizer = accelerator.prepare(optimizer)
        self.judge = torch.compile(self.losses, fullgraph=True) if compile else self.losses
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

    def generator_loss(self, objective: Objective, pair: Pair, batch: Batch) -> Tensor:
        """L_G: [B]. D sees the very image whose consistency is measured. To be called while `judging`."""
        logits = self._logits(pair.student, batch)
        return weighted_lerp(objective, pair, generator_loss(logits), self.weight(pair.sigma_next))

    def discriminator_loss(self, fake: Tensor, fakes: Batch, reals: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D and figures for the log.

        Args:
            fake: images that f made, without gradient; fakes, reals: the batches, each with levels of its own.

        Returns:
            (L_D [B], the share of images classified correctly and the mean sign of the logits on real images).
        """
        logits_fake, logits_real = self._logits(fake, fakes), self._logits(reals.x, reals)
        weights = [self._level_weight(batch) for batch in (fakes, reals)]
        figures = {
            "discriminator_accuracy": torch.cat([logits_fake < 0, logits_real > 0]).float().mean(),
            "discriminator_sign": logits_real.detach().sign().mean(),
        }
        return discriminator_loss(logits_fake, logits_real, *weights), figures

    def penalty(self, reals: Batch) -> Tensor:
        """R1 on real images: [B]. Its weight is gamma alone, not gamma times the interval.

        D is neither compiled here, which has no second derivatives, nor in half precision, which has too few bits.
        """
        seen = self._augmented(reals.x, reals)
        return r1_penalty(self.model, seen, reals.sigma_next, reals.labels, self.r1_gamma) * self._level_weight(reals)

    def update(
        self, f: ConsistencyFunction, fakes: GlobalBatch, reals: GlobalBatch, step: int, generator_batch: int
    ) -> dict[str, Tensor | float]:
        """One optimizer step of D: separate images from the outputs of f, each at a noise level of its own.

        Args:
            fakes: images that f gets with noise; reals: images that D gets as they are. Both have the same size.
            step: optimizer step from 0; every `r1_interval`-th has a gradient penalty and moves the augmentation.
            generator_batch: images of the generator's step, which count for the augmentation's pace like D's.

        Returns:
            Figures for the log, means over this process's micro batches.
        """
        found: dict[str, list[Tensor]] = defaultdict(list)
        penalised = (step + 1) % self.r1_interval == 0
        for part, (fake_batch, real_batch) in enumerate(zip(fakes, reals), 1):
            torch.manual_seed(fake_batch.dropout_seed)
            with self.gradients.over_processes(last=part == len(fakes)):
                figures = self.learn[penalised](f, fake_batch, real_batch, len(fakes))
            for name, value in figures.items():
                found[name].append(value)
        self.step()
        self.optimizer.zero_grad(set_to_none=False)  # a captured step finds them where they are
        means: dict[str, Tensor | float] = {name: torch.stack(values).mean() for name, values in found.items()}
        if penalised and self.strength is not None:
            driving = means["r1" if self.signal == "penalty" else "discriminator_sign"]
            signal = self.accelerator.reduce(driving, "mean")
            self.strength.update(signal, (generator_batch + fakes.size + reals.size) * self.r1_interval)
            p, r = self.strength.p.clone(), self.strength.r.clone()  # which move on before they are logged
            means |= {"augment_p": p, "augment_r": r, "augment_tau": self.strength.tau}
        return means

    def losses(self, f: ConsistencyFunction, fakes: Batch, reals: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D of images that f makes, and figures for the log."""
        noisy = fakes.x + per_image(fakes.sigma_next, fakes.x) * fakes.noise
        with torch.no_grad():
            fake = f(noisy, fakes.sigma_next, fakes.labels)
        return self.discriminator_loss(fake, fakes, reals)

    def _learn(
        self, f: ConsistencyFunction, fakes: Batch, reals: Batch, parts: int, penalised: bool
    ) -> dict[str, Tensor]:
        """Add the gradient of one micro batch, one of so many parts of a step; figures for the log."""
        loss, figures = self.judge(f, fakes, reals)
        figures["discriminator_loss"] = loss.detach().mean()
        if penalised:
            penalty = self.penalty(reals)
            figures["r1"] = penalty.detach().mean()
            loss = loss + penalty
        self.accelerator.backward(loss.mean() / parts)
        return figures

    def _logits(self, images: Tensor, batch: Batch) -> Tensor:
        return discriminator_logits(self._net, self._augmented(images, batch), batch.sigma_next, batch.labels)

    def _net(self, images: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(self.device, self.precision, enabled=self.precision is not None):
            return self.model(images, timestep, labels)

    def _augmented(self, images: Tensor, batch: Batch) -> Tensor:
        if self.strength is None or batch.uniform is None:
            return images
        return augment(images, self.strength.p, batch.uniform)

    def _level_weight(self, batch: Batch) -> Tensor | float:
        return self.weight.rising(batch.sigma_next) if self.time_weight else 1.0
