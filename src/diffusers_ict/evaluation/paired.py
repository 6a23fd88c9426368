"""How close an image that a model of pairs draws is to the one that belongs to the condition.

torchmetrics has both, but does not import beside torch-fidelity, which gives Inception, without torchvision. The tests
compare with it.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

LARGEST = 255.0  # of 8 bits
ROUNDING = 1 / 12  # mean square error of rounding: so much is left where images are equal, and no figure is infinite
WINDOW, DEVIATION = 11, 1.5  # of the Gaussian weights of SSIM
K1, K2 = 0.01, 0.03


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 20 log10(255 / rmse), at most 58.9: uint8 [n, C, H, W] each -> float64 [n]."""
    error = (images.double() - targets.double()).square().flatten(1).mean(1)
    return 10 * (LARGEST**2 / error.clamp(min=ROUNDING)).log10()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity, Wang et al. (doi:10.1109/TIP.2003.819861) Eq. 13: uint8 [n, C, H, W] -> float64 [n].

    The mean over channels and over all places of an 11x11 Gaussian window within the image.

    Raises:
        ValueError: images that are smaller than the window.
    """
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(f"ssim needs images of at least {WINDOW} pixels a side, got {list(images.shape[2:])}.")
    x, y = (each.double() for each in (images, targets))
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    weights = (-offsets.square() / (2 * DEVIATION**2)).exp()
    window = torch.outer(weights, weights)[None, None] / weights.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return conv2d(values.flatten(0, 1)[:, None], window)

    mean_x, mean_y = mean(x), mean(y)
    variances = (mean(x * x) - mean_x**2).clamp(min=0) + (mean(y * y) - mean_y**2).clamp(min=0)
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * LARGEST) ** 2, (K2 * LARGEST) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    return similarity.flatten(1).mean(1).view(images.shape[:2]).mean(1)
