"""The consistency function f and the preconditioning that makes it the identity at the smallest noise level.

    f(x, s) = c_skip(s) x + c_out(s) F(c_in(s) x, c_noise(s))

with f(x, sigma_min) = x for every network F. CM (arXiv:2303.01469) Appendix C, EDM (arXiv:2206.00364) Table 1.

Training, scheduler and pipeline all come through here. The order of the operations is that of diffusers'
CMStochasticIterativeScheduler, so that float32 results agree with the stock pipeline to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dropout import share_dropout
from .noise_schedule import SIGMA_MIN, level_dtype

SIGMA_DATA = 0.5
DIFFUSION_SIGMA_DATA = 1.0  # with which c_in x is what a variance preserving diffusion model sees
C_NOISE_SCALE = 250.0  # c_noise of stock diffusers for each unit of ln(sigma)


def c_skip(sigma: Tensor, sigma_min: float = SIGMA_MIN, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Weight of the noisy image: 1 at sigma_min. CM Eq. 5 and Appendix C."""
    return sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)


def c_out(sigma: Tensor, sigma_min: float = SIGMA_MIN, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Weight of the network: 0 at sigma_min. CM Eq. 5 and Appendix C."""
    return (sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2) ** 0.5


def scale_input(x: Tensor, sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """c_in(sigma) x = x / sqrt(sigma^2 + sigma_data^2): unit variance for the network. EDM Table 1."""
    return x / ((sigma**2 + sigma_data**2) ** 0.5)


def c_noise(sigma: Tensor) -> Tensor:
    """250 ln(sigma): the noise level as the network gets it, in stock diffusers' units.

    Computed in float64 where the device has it, as the stock scheduler does; the embedding rounds it to float32.
    """
    return C_NOISE_SCALE * torch.log(sigma.to(level_dtype(sigma.device)) + 1e-44)


def sigma_of(timesteps: Tensor) -> Tensor:
    """The noise level that `c_noise` gave these timesteps for. Same shape."""
    return (timesteps.to(level_dtype(timesteps.device)) / C_NOISE_SCALE).exp()


def denoise(
    network_output: Tensor, x: Tensor, sigma: Tensor, sigma_min: float = SIGMA_MIN, sigma_data: float = SIGMA_DATA
) -> Tensor:
    """f(x, sigma) from the network's output: c_out F + c_skip x, in the shape of x."""
    return c_out(sigma, sigma_min, sigma_data) * network_output + c_skip(sigma, sigma_min, sigma_data) * x


def per_image(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma [B] as [B, 1, ..., 1] in the dtype of x, to be broadcast against x [B, ...]."""
    return sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Condition:
    """What a network of pairs is told beside the noisy image, in the place of class labels.

    Attributes:
        labels: [B] or None.
        image: what it sees in further input channels as it is, without noise and without c_in: [B, C', H, W].
    """

    labels: Tensor | None
    image: Tensor


Told = Tensor | Condition | None  # what a consistency function gets beside the noisy image and its level


def with_condition(scaled: Tensor, image: Tensor | None) -> Tensor:
    """The input of a network: c_in x [B, C, H, W], and the condition in further channels, if there is one."""
    return scaled if image is None else torch.cat([scaled, image.to(scaled.dtype)], 1)


def boundary(x: Tensor, sigma: Tensor, class_labels: Told = None) -> Tensor:
    """f(x, sigma_min) = x, for every network and without one. CM Eq. 5. Called like a `ConsistencyFunction`."""
    return x


class ConsistencyFunction:
    """f(x, sigma) around a network with the call of diffusers' UNet2DModel.

    Args:
        net: called as `net(scaled_x, timesteps, class_labels=..., return_dict=False)[0]`, any module or wrapper. The
            dropout modules of a module are changed by `share_dropout`, so that both halves of a pair drop the same
            units; for what a wrapper holds, call it before.
        sigma_min, sigma_data: the constants of the preconditioning.

    Raises:
        ValueError: the module drops units otherwise than by `nn.Dropout`; see `share_dropout`.
    """

    def __init__(self, net: Callable, sigma_min: float = SIGMA_MIN, sigma_data: float = SIGMA_DATA) -> None:
        if isinstance(net, nn.Module):
            share_dropout(net)
        self.net, self.sigma_min, self.sigma_data = net, sigma_min, sigma_data

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Told = None) -> Tensor:
        """x [B, C, H, W] in float32, sigma [B], labels [B] or a condition -> the clean estimate, as x.

        sigma may be float64, as grids are: the timestep is then that of the sampler to the last bit. Whatever
        precision the network computes in, the arithmetic around it stays in float32: at N = 1281 the two points of
        a pair are closer together than half precision resolves.
        """
        level = per_image(sigma, x)
        scaled = scale_input(x, level, self.sigma_data)
        told = class_labels if isinstance(class_labels, Condition) else None
        labels = class_labels if told is None else told.labels
        seen = with_condition(scaled, None if told is None else told.image)
        output = self.net(seen, c_noise(sigma), class_labels=labels, return_dict=False)[0]
        return denoise(output.float(), x, level, self.sigma_min, self.sigma_data)
