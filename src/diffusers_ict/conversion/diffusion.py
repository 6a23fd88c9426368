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

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from ..errors import UserError
from ..formulas.noise_schedule import SIGMA_MAX, SIGMA_MIN
from ..formulas.preconditioning import c_noise
from .time_refit import embedding, refit_time_embedding

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
PREDICTIONS = {"epsilon": "the noise (epsilon)", "sample": "the image (sample)", "v_prediction": "v (v_prediction)"}
EDM = "edm"
ALIGNED = ("v_prediction", EDM)  # what needs no alignment
USUAL_LEAST = 0.0101  # the linear betas of DDPM begin at sigma 0.0100


def noise_levels(scheduler: Mapping[str, Any]) -> Tensor:
    """sigma(t) of the time steps 0 .. T - 1 of a scheduler's config: ascending, float64 [T]; or a UserError.

    Steps without any signal, of a schedule with zero terminal SNR, are left out.
    """
    try:
        signal = DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double()
    except Exception as error:  # diffusers checks its arguments in many ways
        raise UserError(f"the scheduler's config describes no betas: {error}") from error
    levels = ((1 - signal) / signal).sqrt()[signal > 0]
    if len(levels) < 2 or not (levels.diff() > 0).all() or not levels.isfinite().all():
        raise UserError("the scheduler's betas must make the noise grow with every time step, and these do not.")
    return levels


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
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"a diffusion model must predict epsilon, sample or v_prediction, not {prediction}.")
    if unet.config.in_channels != unet.config.out_channels:
        raise UserError(
            f"a diffusion model must predict as many channels as it sees, and this one sees {unet.config.in_channels} "
            f"and predicts {unet.config.out_channels}: learned variances cannot be converted."
        )
    levels = noise_levels(scheduler)
    steps = embedding(unet, torch.arange(len(levels)))
    refit_time_embedding(unet, lambda sigmas: _interpolate(steps, levels, sigmas))
    if prediction != "sample":
        with torch.no_grad():
            unet.conv_out.weight.neg_()
            unet.conv_out.bias.neg_()
    return _notes(prediction, levels)


def edm_to_consistency(unet: UNet2DModel) -> list[str]:
    """Turn an EDM network of openai/consistency_models into a start, in place; returns what its user should know."""
    refit_time_embedding(unet, lambda sigmas: embedding(unet, c_noise(sigmas)))
    return ["Recognised by its name as a diffusion model (EDM): a start for training, not for sampling in few steps."]


def _interpolate(steps: Tensor, levels: Tensor, sigmas: Tensor) -> Tensor:
    """The embedding at noise levels [n], by linear interpolation in ln(sigma) of that of the time steps [T, width].

    Beyond the levels [T] of the time steps it is that of the first or the last step.
    """
    times = torch.from_numpy(np.interp(sigmas.log().numpy(), levels.log().numpy(), np.arange(len(levels))))
    before = times.long().clamp(max=len(levels) - 2)
    return torch.lerp(steps[before], steps[before + 1], (times - before)[:, None])


def _notes(prediction: str, levels: Tensor) -> list[str]:
    least, largest = levels[0].item(), levels[-1].item()
    notes = [
        f"Made from a diffusion model that predicts {PREDICTIONS[prediction]}: where training begins (with sigma_data "
        "1), not a finished consistency model."
    ]
    if prediction not in ALIGNED:
        notes.append(
            f"Its prediction is exact only at {'low' if prediction == 'epsilon' else 'high'} noise until it is aligned."
        )
    if largest < SIGMA_MAX or least > USUAL_LEAST:
        notes.append(
            f"Its noise goes from sigma {least:.4g} to {largest:.4g}, and sampling needs levels from {SIGMA_MIN:g} to "
            f"{SIGMA_MAX:g}: those beyond are new to it, and have the time embedding of its first or last step."
        )
    return notes
