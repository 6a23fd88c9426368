"""The peer of the benchmarks: a training step as diffusers' own consistency training script takes it.

Written from what train_cm_ct_unconditional.py of diffusers 0.36 does by default, and nothing is put right in it:

- c_in is 1 / (sigma^2 + sigma_data^2), without the root that the scheduler takes when the model is sampled; c_skip and
  c_out do not begin at sigma_min, so that the boundary holds only nearly;
- the pseudo-Huber distance is taken of each pixel and not of the image, with c of the image;
- a second UNet is the teacher and gets all weights anew after each step;
- AdamW, gradients clipped to a norm of 1, a warm-up of 500 steps (here at most half of the run), then a cosine to 0;
- an average with a decay of (1 + k) / (10 + k), at most 0.99993, is kept where it is asked for;
- the stages of the curriculum, the levels and their probabilities are iCT's.
"""

import copy
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from diffusers_ict import ICT, ict_num_levels, karras_sigmas
from diffusers_ict.formulas.preconditioning import c_noise, per_image

SIGMA_DATA = 0.5


class DiffusersStep:
    """Steps of that script on one device.

    Args:
        unet: the student, with the dropout that it shall have; trained in place.
        max_train_steps: of the whole run, for the curriculum and the learning rate.
        autocast: the context of the forward passes.
    """

    def __init__(
        self, unet: UNet2DModel, max_train_steps: int, learning_rate: float, autocast: torch.autocast, seed: int = 0
    ) -> None:
        self.unet, self.autocast, self.max_train_steps, self.done = unet.train(), autocast, max_train_steps, 0
        self.teacher = copy.deepcopy(unet).requires_grad_(False)
        self.average = EMAModel(unet.parameters(), decay=0.99993)
        self.average.to(unet.device)
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, betas=(0.95, 0.999), weight_decay=1e-6)
        self.rates = get_scheduler(
            "cosine",
            self.optimizer,
            num_warmup_steps=min(500, max_train_steps // 2),
            num_training_steps=max_train_steps,
        )
        self.generator = torch.Generator(unet.device).manual_seed(seed)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> None:
        """One step on images [B, C, H, W] in [-1, 1] and their classes [B]."""
        levels = ict_num_levels(self.done, self.max_train_steps)
        sigmas = karras_sigmas(levels).to(images.device)
        chances = ICT().pair_probabilities(sigmas)
        pairs = torch.multinomial(chances, len(images), replacement=True, generator=self.generator)
        noise = torch.randn(images.shape, device=images.device, generator=self.generator)
        low, high = sigmas[pairs], sigmas[pairs + 1]
        state = torch.get_rng_state()
        student = self.predict(self.unet, images + per_image(high, images) * noise, high, labels)
        torch.set_rng_state(state)
        with torch.no_grad():
            target = self.predict(self.teacher, images + per_image(low, images) * noise, low, labels)
        c = 0.00054 * images[0].numel() ** 0.5
        distance = ((student - target).square() + c**2).sqrt() - c
        (distance / per_image(high - low, images)).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        self.teacher.load_state_dict(self.unet.state_dict())
        self.average.step(self.unet.parameters())
        self.done += 1

    def predict(self, net: UNet2DModel, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """f(x, sigma) with that script's coefficients."""
        level = per_image(sigma, x)
        variance = level**2 + SIGMA_DATA**2
        with self.autocast:
            out = net(x / variance, c_noise(sigma), class_labels=labels, return_dict=False)[0]
        return SIGMA_DATA**2 / variance * x + level / variance.sqrt() * out.float()

    def publish(self, folder: Path, averaged: bool) -> None:
        """Save the pipeline that the script publishes; or the same with the averaged weights, which it saves beside."""
        unet = copy.deepcopy(self.unet)
        if averaged:
            self.average.copy_to(unet.parameters())
        levels = ict_num_levels(self.done - 1, self.max_train_steps)
        ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler(num_train_timesteps=levels)).save_pretrained(
            folder
        )
