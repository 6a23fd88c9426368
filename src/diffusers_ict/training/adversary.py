"""The second player of an ACT run: discriminator, its optimizer, and the strength of the augmentation."""

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor

from ..act import (
    AdaptiveStrength,
    AdversarialWeight,
    GradientBalance,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    verdict,
    weighted_lerp,
)
from ..augmentation import augment
from ..discriminator import ConsistencyDiscriminator
from ..errors import UserError
from ..objective import Objective, Pair
from ..time_embedding import hold_fast_columns, zero_fast_columns
from .batch import Batch
from .recipe import Recipe
from .unets import discriminator_config


def build_discriminator(unet_config: dict, config_name_or_path: str | None, seed: int) -> ConsistencyDiscriminator:
    """A fresh discriminator for the images of a UNet: of a given config, or one like the UNet's encoder.

    Raises:
        UserError: no such config, or it does not fit the images or the classes.
    """
    config = discriminator_config(unet_config)
    if config_name_or_path is not None:
        given = _read(config_name_or_path)
        for key in ("sample_size", "in_channels", "num_class_embeds"):
            if given.get(key, config.get(key)) != config.get(key):
                raise UserError(
                    f"the discriminator's {key} is {given[key]} and the images need {config.get(key)}: change it in "
                    f"{config_name_or_path}."
                )
        config = {**given, **{key: config[key] for key in ("sample_size", "in_channels")}}
    try:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return ConsistencyDiscriminator.from_config(config)
    except ValueError as error:
        raise UserError(f"the discriminator does not fit the images: {error}") from error


def _read(name_or_path: str) -> dict:
    try:
        return ConsistencyDiscriminator.load_config(name_or_path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no discriminator config could be read from {name_or_path}: {reason}") from error


class Adversary:
    """Discriminator and what goes with it.

    Attributes:
        model: the discriminator; optimizer: its RAdam; strength: state of ACT-Aug.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        unet: UNet2DModel,
        discriminator: ConsistencyDiscriminator,
    ) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.model = discriminator.to(accelerator.device).train()
        if recipe.insensitive_time_embedding:
            zero_fast_columns(self.model)
            hold_fast_columns(self.model)
        self.compiled = torch.compile(self.model) if recipe.torch_compile else self.model
        self.weight = AdversarialWeight(recipe.adversarial_weight, recipe.adversarial_weight_mid)
        self.mix = weighted_lerp if recipe.adversarial_balance == "lerp" else GradientBalance(unet.conv_out.weight)
        self.strength = AdaptiveStrength(recipe.augment_tau, recipe.augment_horizon)
        betas = recipe.discriminator_beta1, recipe.discriminator_beta2
        self.optimizer = accelerator.prepare(
            torch.optim.RAdam(self.model.parameters(), recipe.discriminator_learning_rate, betas, foreach=True)
        )

    def _net(self, images: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
        with self.accelerator.autocast():
            return self.compiled(images, timestep, labels)

    def _plain_net(self, images: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
        """Neither compiled, which has no second derivatives, nor in half precision, which has too few bits for them."""
        return self.model(images, timestep, labels)

    def _augmented(self, images: Tensor, uniform: Tensor | None) -> Tensor:
        return images if uniform is None else augment(images, self.strength.p, uniform)

    def generator_losses(self, objective: Objective, pair: Pair, batch: Batch, num_levels: int) -> Tensor:
        """L_G: [B]. D judges the very image whose consistency is measured; its own weights get no gradient."""
        self.model.requires_grad_(False)
        logits = verdict(self._net, self._augmented(pair.student, batch.uniform), pair.sigma_next, batch.labels)
        self.model.requires_grad_(True)
        return self.mix(objective, pair, generator_loss(logits), self.weight(batch.index_next, num_levels))

    def discriminator_losses(
        self, fake: Tensor, fake_batch: Batch, real_batch: Batch, num_levels: int
    ) -> tuple[Tensor, Tensor]:
        """(L_D [B], fraction of the batch judged rightly). `fake` carries no gradient; both kinds drew their own t."""
        fakes = verdict(self._net, self._augmented(fake, fake_batch.uniform), fake_batch.sigma_next, fake_batch.labels)
        reals = verdict(
            self._net,
            self._augmented(real_batch.x, real_batch.uniform),
            real_batch.sigma_next,
            real_batch.labels,
        )
        accuracy = torch.cat([fakes < 0, reals > 0]).float().mean().detach()
        weights = (
            [self.weight.rising(batch.index_next, num_levels) for batch in (fake_batch, real_batch)]
            if self.recipe.discriminator_time_weight
            else [1.0, 1.0]
        )
        return discriminator_loss(fakes, reals, *weights), accuracy

    def penalties(self, real_batch: Batch, num_levels: int) -> Tensor:
        """R1 on real images: [B]. Its weight is gamma alone, not gamma times the interval."""
        penalty = r1_penalty(
            self._plain_net,
            self._augmented(real_batch.x, real_batch.uniform),
            real_batch.sigma_next,
            real_batch.labels,
            self.recipe.r1_gamma,
        )
        if self.recipe.discriminator_time_weight:
            penalty = penalty * self.weight.rising(real_batch.index_next, num_levels)
        return penalty
