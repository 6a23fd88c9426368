"""ACT's discriminator in training, and the strength of the augmentation of what it sees."""

from functools import partial

import torch
from torch import Tensor

from ..data.batches import Batch
from ..formulas.augmentation import augment
from ..formulas.preconditioning import ConsistencyFunction, per_image
from ..objectives.act import ACT, discriminator_loss, generator_loss, r1_penalty, weighted_lerp
from ..objectives.adversarial import discriminator_logits
from ..objectives.base import Pair
from ..processes import in_precision
from .adversary import Adversary


class ACTAdversary(Adversary):
    """D of `ACT`; `memory` is the strength of the augmentation, or None."""

    def __init__(self, accelerator, act: ACT, *args, **kwargs) -> None:
        super().__init__(accelerator, act, *args, **kwargs)
        self.act, self.memory = act, act.strength(accelerator.device)
        # The generator asks the network itself: around it, DistributedDataParallel would wait for gradients of D.
        self.judge, self.student = in_precision(self.model, accelerator), in_precision(self.net, accelerator)
        self.learn = {
            penalised: self.captured(partial(self._learn, penalised=penalised)) for penalised in (False, True)
        }

    def generator_loss(self, pair: Pair, batch: Batch) -> Tensor:
        logits = discriminator_logits(self.judge, self._seen(pair.student, batch), batch.sigma_next, batch.labels)
        return weighted_lerp(self.act, pair, generator_loss(logits), self.act.weight(pair.sigma_next))

    def losses(self, f: ConsistencyFunction, fakes: Batch, reals: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D [B] of images that f makes and of real ones, each at levels of its own, and figures for the log.

        The figures are the share of images classified correctly, and the mean sign of the logits on real images.
        """
        with torch.no_grad():
            fake = f(fakes.x + per_image(fakes.sigma_next, fakes.x) * fakes.noise, fakes.sigma_next, fakes.labels)
        logits_fake, logits_real = (
            discriminator_logits(self.student, self._seen(images, batch), batch.sigma_next, batch.labels)
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

    def _is_penalised(self, step: int) -> bool:
        """Every `r1_interval`-th step has a gradient penalty, and moves the augmentation."""
        return (step + 1) % self.act.r1_interval == 0

    def learner(self, step: int):
        return self.learn[self._is_penalised(step)]

    def end_step(self, means: dict[str, Tensor], step: int, images: int) -> dict[str, Tensor | float]:
        """Move the strength of the augmentation, whose pace follows from the images that both networks have seen."""
        if self.memory is None or not self._is_penalised(step):
            return {}
        driving = means["r1" if self.act.augment_signal == "penalty" else "discriminator_sign"]
        self.memory.update(self.accelerator.reduce(driving, "mean"), images * self.act.r1_interval)
        p, r = self.memory.p.clone(), self.memory.r.clone()  # which move on before they are logged
        return {"augment_p": p, "augment_r": r, "augment_tau": self.memory.tau}

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
        if self.memory is None or batch.uniform is None:
            return images
        return augment(images, self.memory.p, batch.uniform)

    def _weight(self, batch: Batch) -> Tensor | float:
        return self.act.weight.rising(batch.sigma_next) if self.act.discriminator_time_weight else 1.0
