"""The relativistic discriminator in training: pairs of samples and images, and the balance of two gradients."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data.batches import Batch
from ..formulas.preconditioning import ConsistencyFunction, per_image
from ..objectives.adversarial import discriminator_logits
from ..objectives.base import Pair
from ..objectives.relativistic import Relativistic, gradient_penalty, relativistic_loss
from .adversary import Adversary

MEMORY = 0.9  # of the running squares of gradient norms


class Balance:
    """The factor that gives one gradient a share of the norm of another, from running means of their squares.

    The squares of a step are summed over its micro batches and processes, so that the factor is a function of the steps
    before. It is 0 in the first step, of which nothing is known yet.

    Args:
        device: where the squares are, numbers that the host does not wait for.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.squares = torch.zeros(2, device=device)  # of the consistency term and of the adversarial one
        self.sums = torch.zeros(2, device=device)  # those of this step

    def factor(self, share: float) -> Tensor:
        """What the adversarial gradient is multiplied by."""
        consistency, adversarial = self.squares.sqrt()
        return share * consistency / (adversarial + 1e-8)

    def add(self, consistency: Tensor, adversarial: Tensor) -> None:
        """Count the gradients of a micro batch, of any shape."""
        self.sums += torch.stack([consistency.detach().square().sum(), adversarial.detach().square().sum()])

    def end_step(self, accelerator: Accelerator) -> None:
        """Take the sums of a step into the running squares."""
        sums = accelerator.reduce(self.sums, "mean")
        known = self.squares.sum() > 0
        self.squares.copy_(torch.where(known, torch.lerp(sums, self.squares, MEMORY), sums))
        self.sums.zero_()

    def state(self) -> dict[str, float]:
        """The running squares by name. Waits for the device."""
        return dict(zip(("consistency", "adversarial"), self.squares.tolist()))

    def load_state(self, state: dict[str, float]) -> None:
        """Put back the running squares."""
        self.squares.copy_(torch.tensor([state["consistency"], state["adversarial"]]))


class RelativisticAdversary(Adversary):
    """D of `Relativistic`, in float32: finite differences of logits have no bits to lose. `memory` is the balance."""

    def __init__(self, accelerator: Accelerator, objective: Relativistic, *args, **kwargs) -> None:
        super().__init__(accelerator, objective, *args, **kwargs)
        self.objective, self.memory = objective, Balance(accelerator.device)
        self.learn = self.captured(self._learn)

    def generator_loss(self, pair: Pair, batch: Batch) -> Tensor:
        """L_G: [B], whose gradient at the student's images is that of both terms in balance."""
        consistency = self.objective.consistency.loss(pair)
        image = pair.student.detach().float().requires_grad_(True)
        fake = discriminator_logits(self.model, image, batch.sigma_next, batch.labels)
        with torch.no_grad():
            real = discriminator_logits(self.model, batch.x, batch.sigma_next, batch.labels)
        adversarial = self.objective.weight(batch.sigma_next) * relativistic_loss(fake, real)
        (of_consistency,) = torch.autograd.grad(consistency.sum(), pair.student, retain_graph=True)
        (of_adversary,) = torch.autograd.grad(adversarial.sum(), image)
        self.memory.add(of_consistency, of_adversary)
        factor = self.memory.factor(self.objective.share)
        pull = (pair.student * (factor * of_adversary)).flatten(1).sum(1)  # whose gradient is the scaled one
        return consistency + (pull - pull.detach()) + factor * adversarial.detach()

    def learner(self, step: int):
        return self.learn

    def end_step(self, means: dict[str, Tensor], step: int, images: int) -> dict[str, Tensor | float]:
        self.memory.end_step(self.accelerator)
        return {"adversarial_factor": self.memory.factor(self.objective.share)}

    def _learn(self, f: ConsistencyFunction, batch: Batch, other: Batch, parts: int) -> dict[str, Tensor]:
        """Add the gradient of D for one micro batch: its images, and what f makes of them with noise.

        The noise of the finite differences is that of another batch.
        """
        objective, level = self.objective, batch.sigma_next
        with torch.no_grad():
            fake = f(batch.x + per_image(level, batch.x) * batch.noise, level, batch.labels).float()
        count = math.ceil(len(batch.x) * objective.penalized)
        moved = [images[:count] + objective.epsilon * other.noise[:count] for images in (batch.x, fake)]
        every = torch.arange(len(batch.x), device=level.device)
        judged = torch.cat([every, every, every[:count], every[:count]])
        labels = None if batch.labels is None else batch.labels[judged]
        logits = discriminator_logits(self.net, torch.cat([batch.x, fake, *moved]), level[judged], labels)
        real, made, near_real, near_made = logits.split([len(every), len(every), count, count])
        r1, r2 = (
            gradient_penalty(near, at[:count], objective.gamma, objective.epsilon)
            for near, at in ((near_real, real), (near_made, made))
        )
        loss = relativistic_loss(real, made).mean()
        centring = objective.centring * (real + made).square().mean()
        penalty = (r1 + r2).sum() / max(count, 1)
        self.accelerator.backward((loss + penalty + centring) / parts)
        return {
            "discriminator_loss": loss.detach(),
            "discriminator_accuracy": (real > made).float().mean(),
            "r1": r1.detach().sum() / max(count, 1),
            "r2": r2.detach().sum() / max(count, 1),
        }
