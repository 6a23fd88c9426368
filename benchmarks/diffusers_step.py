"""The peer of bench.py: one step as diffusers' own consistency training script takes it, written from what it does.

A second UNet is the teacher and gets all weights anew in every step; the pseudo-Huber loss is one number per pixel;
gradients are clipped; the optimizer is AdamW; the average is diffusers' EMAModel.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from diffusers_ict import ICT, ict_num_levels, karras_sigmas
from diffusers_ict.preconditioning import c_noise, denoise, per_image, scale_input


def stock_scheduler(folder: str | Path) -> CMStochasticIterativeScheduler:
    """The stock scheduler that a saved one is read as."""
    return CMStochasticIterativeScheduler.from_pretrained(folder)


def make(
    config: dict, batch: int, device: torch.device, autocast: torch.autocast, dropout: float
) -> Callable[[], None]:
    """A training step on random images of 3x32x32, ready to be repeated."""
    unet = UNet2DModel.from_config({**config, "dropout": dropout}).to(device).train()
    teacher = copy.deepcopy(unet).requires_grad_(False)
    average = EMAModel(unet.parameters(), decay=0.9999)
    average.to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    sigmas = karras_sigmas(ict_num_levels(0, 100)).to(device)
    images = torch.randn(batch, 3, 32, 32, device=device)
    weight = 0.00054 * (3 * 32 * 32) ** 0.5

    def f(net: UNet2DModel, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = per_image(sigma, x)
        with autocast:
            out = net(scale_input(x, level), c_noise(sigma), return_dict=False)[0]
        return denoise(out.float(), x, level)

    def step() -> None:
        pairs = torch.multinomial(ICT().pair_probabilities(sigmas), batch, replacement=True)
        noise = torch.randn_like(images)
        low, high = sigmas[pairs], sigmas[pairs + 1]
        state = torch.get_rng_state()
        student = f(unet, images + per_image(high, images) * noise, high)
        torch.set_rng_state(state)
        teacher.load_state_dict(unet.state_dict())
        with torch.no_grad():
            target = f(teacher, images + per_image(low, images) * noise, low)
        distance = ((student - target).square() + weight**2).sqrt() - weight
        loss = (distance / per_image(high - low, images)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())

    return step
