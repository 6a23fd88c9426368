"""How close an image that a model of pairs draws is to the one that belongs to the condition.

torchmetrics has both, but does not import beside torch-fidelity, which gives Inception, without torchvision. The tests
compare with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torch.utils.data import DataLoader, TensorDataset

from ..errors import UserError
from ..objectives.lpips import LPIPS
from ..progress import progress_bar
from .features import ImagesByNumber

LARGEST = 255.0  # of 8 bits
ROUNDING = 1 / 12  # mean square error of rounding: so much is left where images are equal, and no figure is infinite
WINDOW, DEVIATION = 11, 1.5  # of the Gaussian weights of SSIM
K1, K2 = 0.01, 0.03
LEAST_OF_VGG = 16  # pixels: its last feature map has one


@dataclass(frozen=True)
class PairedMetric:
    """A metric of images and those that they should be.

    Attributes:
        name: by which users ask for it.
        compute: (images, targets), uint8 [n, C, H, W] each, -> [n].
        higher_is_better: or lower.
    """

    name: str
    compute: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 20 log10(255 / rmse), at most 58.9: uint8 [n, C, H, W] each -> float64 [n]."""
    error = (images.double() - targets.double()).square().flatten(1).mean(1)
    return 10 * (LARGEST**2 / error.clamp(min=ROUNDING)).log10()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity, Wang et al. (doi:10.1109/TIP.2003.819861) Eq. 13: uint8 [n, C, H, W] -> float64 [n].

    The mean over channels and pixels, by an 11x11 Gaussian window; images are reflected at their edges.

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
        return conv2d(pad(values.flatten(0, 1)[:, None], [WINDOW // 2] * 4, mode="reflect"), window)

    mean_x, mean_y = mean(x), mean(y)
    variances = (mean(x * x) - mean_x**2).clamp(min=0) + (mean(y * y) - mean_y**2).clamp(min=0)
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * LARGEST) ** 2, (K2 * LARGEST) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    return similarity.flatten(1).mean(1).view(images.shape[:2]).mean(1)


def _lpips(weights: str | None, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (arXiv:1801.03924) by VGG16, of images as they are, not resized; or a UserError."""
    try:
        net = LPIPS.from_package(smallest=0) if weights is None else LPIPS.from_safetensors(Path(weights), smallest=0)
    except ImportError as error:
        raise UserError("the metric lpips needs `lpips_weights` FILE, or the package: pip install lpips.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"`lpips_weights` cannot be used: {error}") from error
    net = net.to(device)

    @torch.no_grad()
    def distances(images: Tensor, targets: Tensor) -> Tensor:
        return net(*(each.to(device).float() / 127.5 - 1 for each in (images, targets)))

    return distances


PAIRED = ("psnr", "ssim", "lpips")


def paired_metrics(
    names: Sequence[str], shape: tuple[int, int, int], lpips_weights: str | None, device: torch.device
) -> list[PairedMetric]:
    """The metrics of some names, for images of a shape (C, H, W).

    Raises:
        UserError: images that a metric cannot compare, or weights that are missing or cannot be used.
    """
    channels, *sides = shape
    for name, least in (("ssim", WINDOW), ("lpips", LEAST_OF_VGG)):
        if name in names and min(sides) < least:
            raise UserError(
                f"the metric {name} needs images of at least {least} pixels a side, got {sides[1]}x{sides[0]}: remove "
                "it from `metrics`."
            )
    if "lpips" in names and channels not in (1, 3):
        raise UserError(f"the metric lpips compares images of 1 or 3 channels, got {channels}: remove it.")
    made = {"psnr": PairedMetric("psnr", psnr, True), "ssim": PairedMetric("ssim", ssim, True)}
    if "lpips" in names:
        made["lpips"] = PairedMetric("lpips", _lpips(lpips_weights, device), False)
    return [made[name] for name in names]


def closeness(
    images: ImagesByNumber,
    targets: ImagesByNumber,
    count: int,
    metrics: Sequence[PairedMetric],
    accelerator: Accelerator,
    batch_size: int,
    label: str,
) -> dict[str, float]:
    """Means of metrics over `count` images and their targets, by name, the same on all processes.

    Args:
        batch_size: images at once on each process; label: of the progress bar.
    """
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(count)), batch_size))
    sums, shown = torch.zeros(len(metrics), dtype=torch.float64), accelerator.is_main_process
    with progress_bar(count, "image", shown=shown, desc=label, delay=2, leave=False) as progress:
        for (numbers,) in loader:
            drawn, real = images(numbers.cpu()).cpu(), targets(numbers.cpu()).cpu()
            values = torch.stack([metric.compute(drawn, real).float().cpu() for metric in metrics], 1)
            values = accelerator.gather_for_metrics(values.to(accelerator.device))
            sums += values.double().cpu().sum(0)
            progress.update(len(values))
    return {metric.name: value for metric, value in zip(metrics, (sums / count).tolist())}
