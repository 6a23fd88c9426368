"""A diffusion model of diffusers (DDPM, DDIM, PNDM) in the form of a stock consistency model.

The diffusion model sees x_t = (x + sigma z) / sqrt(1 + sigma^2) with sigma(t) = sqrt((1 - abar_t) / abar_t), and with
sigma_data = 1 that is exactly c_in(sigma) (x + sigma z): the images that the network gets are the same. Its estimate of
the clean image, written as D = c_skip (x + sigma z) + c_out F with c_skip = 1 / (sigma^2 + 1) and
c_out = sigma / sqrt(sigma^2 + 1), makes F a function of what it predicts:

    velocity v     F = -v
    noise eps      F = sigma x_t - sqrt(1 + sigma^2) eps     -> -eps  as sigma -> 0
    image          F = (sqrt(1 + sigma^2) image - x_t) / sigma -> image as sigma -> infinity

So the velocity is exact with the last layer negated. A UNet cannot hold the factors of the other two, so they begin at
their limits, and some hundred steps of denoising in the new form ("alignment") teach the rest. The time embedding is
refitted without data: from the integer t(sigma) to 250 ln(sigma), on the slow frequencies alone, as iCT wants it.

The EDM networks of openai/consistency_models have this form already, with sigma_data 0.5 and but for sigma_min. Theirs
is refitted for the slow frequencies only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from ..errors import UserError
from ..formulas.noise_schedule import SIGMA_MAX, SIGMA_MIN
from ..formulas.preconditioning import c_noise
from ..formulas.time_embedding import fast_columns
from .time_refit import embedding, geometric, ridge, set_linear

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
EDM = "edm"
ALIGNED = ("v_prediction", EDM)  # what needs no alignment
GAIN = 2.0  # slope of the hinges per unit of ln(sigma)
LEVELS = 4000
USUAL_LEAST = 0.0101  # the linear betas of DDPM begin at sigma 0.0100
MARGIN = 0.3  # of ln(sigma) on both sides, because fits are worst at their ends
HEIGHT_RIDGE, EMBEDDING_RIDGE = 1e-9, 1e-4  # the second smooths away the wiggle that trained networks do not use


def noise_levels(scheduler: Mapping[str, Any]) -> Tensor:
    """sigma(t) of the time steps 0 .. T - 1 of a scheduler's config: ascending, float64 [T].

    Steps without any signal, of a schedule with zero terminal SNR, are left out.

    Raises:
        UserError: the config describes no schedule of betas.
    """
    try:
        signal = DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double()
    except Exception as error:  # diffusers checks its arguments in many ways
        raise UserError(f"the scheduler's config describes no betas: {error}") from error
    levels = ((1 - signal) / signal).sqrt()[signal > 0]
    if len(levels) < 2 or not (levels.diff() > 0).all() or not levels.isfinite().all():
        raise UserError("the scheduler's betas must make the noise grow with every time step, and these do not.")
    return levels


def times_of(sigma: Tensor, levels: Tensor) -> Tensor:
    """The fractional time steps of noise levels, by linear interpolation in ln(sigma); 0 and T - 1 beyond the ends."""
    steps = np.arange(len(levels))
    return torch.from_numpy(np.interp(sigma.log().numpy(), levels.log().numpy(), steps))


def to_consistency(unet: UNet2DModel, scheduler: Mapping[str, Any]) -> list[str]:
    """Turn the UNet of a diffusion model into the F of a stock consistency model with sigma_data 1, in place.

    Args:
        unet: in float32 on the CPU; takes time steps and predicts what the scheduler says.
        scheduler: config of a `DDPMScheduler`, `DDIMScheduler` or `PNDMScheduler`.

    Returns:
        What its user should know.

    Raises:
        UserError: the UNet predicts more than one image, or the schedule cannot be read.
    """
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise UserError(f"a diffusion model must predict epsilon, sample or v_prediction, not {kind}.")
    if unet.config.in_channels != unet.config.out_channels:
        raise UserError(
            f"a diffusion model must predict as many channels as it sees, and this one sees {unet.config.in_channels} "
            f"and predicts {unet.config.out_channels}: learned variances cannot be converted."
        )
    levels = noise_levels(scheduler)
    refit_time(unet, lambda sigma: embedding_of_steps(unet, times_of(sigma, levels), len(levels)))
    if kind != "sample":
        with torch.no_grad():
            unet.conv_out.weight.neg_()
            unet.conv_out.bias.neg_()
    return _notes(kind, levels)


def edm_to_consistency(unet: UNet2DModel) -> list[str]:
    """Turn an EDM network of openai/consistency_models, which is told 250 ln(sigma), into a start, in place.

    Returns:
        What its user should know.
    """
    refit_time(unet, lambda sigma: embedding(unet, c_noise(sigma)))
    return ["Recognised by its name as a diffusion model (EDM): a start for training, not for sampling in few steps."]


def _notes(kind: str, levels: Tensor) -> list[str]:
    least, largest = levels[0].item(), levels[-1].item()
    notes = [f"A diffusion model (prediction: {kind}), turned into the start of a consistency model with sigma_data 1."]
    if kind not in ALIGNED:
        notes.append(
            f"Its prediction is exact only at {'low' if kind == 'epsilon' else 'high'} noise until it is aligned: "
            "train it with `loss` ect, which aligns it first."
        )
    if largest < SIGMA_MAX:
        notes.append(
            f"Its noise ends at sigma {largest:.4g}, and sampling begins at {SIGMA_MAX:g}: levels between them are new "
            "to it, and their time embedding is that of its last step."
        )
    if least > USUAL_LEAST:
        notes.append(f"Its noise begins at sigma {least:.4g}: lower levels have the time embedding of its first step.")
    return notes


def refit_time(unet: UNet2DModel, embedding_of: Callable[[Tensor], Tensor]) -> None:
    """Give the time embedding of 250 ln(sigma) the values of another one, on the slow frequencies alone.

    The first layer becomes hinges in ln(sigma) with equally spaced knots, the second the ridge regression of the wanted
    values on them. All is computed in float64 and written in the UNet's dtype.

    Args:
        unet: changed in place.
        embedding_of: the wanted embedding of noise levels, float64 [n] -> [n, width].
    """
    first, second = unet.time_embedding.linear_1, unet.time_embedding.linear_2
    low, high = SIGMA_MIN * np.exp(-MARGIN), SIGMA_MAX * np.exp(MARGIN)
    sigmas = geometric(LEVELS, low, high)
    wanted = embedding_of(sigmas)
    slow = ~fast_columns(unet)
    features = unet.time_proj(c_noise(sigmas)).double() * slow
    # ln(sigma) as one combination of the slow features
    height = _fit(features, sigmas.log()[:, None], HEIGHT_RIDGE)
    knots = torch.linspace(np.log(low), np.log(high), first.out_features, dtype=torch.float64)
    gains = GAIN * torch.ones_like(knots)
    gains[1::2] *= -1
    set_linear(first, gains[:, None] * height[0] * slow, gains * (height[1] - knots))
    hidden = F.silu(F.linear(features, first.weight.detach().double(), first.bias.detach().double()))
    set_linear(second, *_fit(hidden, wanted, EMBEDDING_RIDGE))


def embedding_of_steps(unet: UNet2DModel, times: Tensor, steps: int) -> Tensor:
    """The embedding of fractional time steps, between those of the two integers around: float64 [n, width]."""
    known = embedding(unet, torch.arange(steps))
    before = times.long().clamp(max=steps - 2)
    return torch.lerp(known[before], known[before + 1], (times - before)[:, None])


def _fit(given: Tensor, wanted: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(weight [m, h], bias [m]) of the ridge regression of wanted [n, m] on given [n, h]; the bias is free."""
    centre, target = given.mean(0), wanted.mean(0)
    weight = ridge(given - centre, wanted - target, penalty).T
    return weight, target - weight @ centre
