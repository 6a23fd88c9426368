"""Latents instead of images: encoded once by an autoencoder, cached beside the decoded images, and scaled."""

import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..autoencoders import Autoencoder, downsampling, encode, fingerprint, latent_shape
from ..errors import UserError
from ..files import atomic_file, read_tensors
from ..formulas.preconditioning import SIGMA_DATA
from ..progress import progress_bar
from .dataset import Images, fingerprint_of
from .draw import Draw
from .settings import DataSettings
from .transform import to_unit

LAYOUT = 1  # to be raised when the same images are encoded to other numbers than before
AT_ONCE = 32  # images of one call of the autoencoder
SUMMED = 1024  # latents that are summed in float64 together


class Latents(Images):
    """The latents of images: rows of means, and of deviations where latents are drawn, each also of mirrored images.

    Args:
        rows: float32 [n, K * C, H, W], scaled: mean, deviation, and both of the mirrored image, as far as they are
            there.
        images: that they are of, which are shown beside samples.
        vae: whose `scaling_factor` is the scale of the rows.
        sampled: whether there are deviations, so that each step draws latents of its own; mirrored: whether there are
            those of mirrored images.
    """

    def __init__(self, rows: Tensor, images: Images, vae: Autoencoder, sampled: bool, mirrored: bool) -> None:
        super().__init__(rows, images.labels, images.num_classes, images.class_names, images.originals)
        self.images, self.vae, self.sampled, self.mirrored = images, vae, sampled, mirrored
        self.scale, self.smaller = float(vae.config.scaling_factor), downsampling(vae)
        self.labels = None if self.labels is None else self.labels.to(rows.device)
        self.transform = self._drawn

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        rows, height, width = super().shape
        return rows // ((1 + self.sampled) * (1 + self.mirrored)), height, width

    @property
    def examples(self) -> Images:
        """The images, to show beside decoded samples."""
        return self.images

    def to(self, device: torch.device | str) -> "Latents":
        """As of images."""
        moved = super().to(device)
        return self if moved is self else Latents(moved.pixels, self.images, self.vae, self.sampled, self.mirrored)

    def fingerprint(self) -> str:
        """That of the images; the autoencoder has its own."""
        return self.images.fingerprint()

    def overview(self) -> dict[str, str]:
        """Texts by title: those of the images, and what the autoencoder makes of them."""
        form = "x".join(map(str, self.shape))
        kind = "drawn at each step" if self.sampled else "means"
        latents = (
            f"{form}, {kind}, of {type(self.vae).__name__} ({self.smaller} times smaller, scaled by {self.scale:.4g})"
        )
        return {**self.images.overview(), "latents": latents}

    def batch(self, indices: Tensor, flips: Tensor | None, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Scaled means, float32 [B, C, H, W], and labels [B], on `device`; of mirrored images for those in `flips`."""
        rows, labels = self.part(indices.to(self.device))
        mean, _ = self._of_images(rows.to(device), flips)
        return mean, None if labels is None else labels.to(device)

    def _drawn(self, rows: Tensor, flips: Tensor | None, draw: Draw, places: range) -> Tensor:
        """The transform of latents: means, or what the posterior's mean and deviation make of noise."""
        mean, deviation = self._of_images(rows.to(draw.device, non_blocking=True), flips)
        if deviation is None:
            return mean
        return mean + deviation * draw.posterior_noise(tuple(mean.shape[1:]), places)

    def _of_images(self, rows: Tensor, flips: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mean and deviation of rows, those of the mirrored image where `flips` says so."""
        halves = rows.chunk(2, dim=1) if self.mirrored else (rows,)
        if flips is not None:
            assert self.mirrored
            halves = (torch.where(flips.to(rows.device)[:, None, None, None], halves[1], halves[0]),)
        if not self.sampled:
            return halves[0], None
        mean, deviation = halves[0].chunk(2, dim=1)
        return mean, deviation


def encode_images(
    images: Images,
    vae: Autoencoder,
    settings: DataSettings | None = None,
    *,
    sampled: bool = False,
    mirrored: bool = False,
    accelerator: Accelerator | None = None,
) -> Latents:
    """The latents of images, encoded on the device of the accelerator, or read from an earlier run's file.

    The autoencoder is moved there, and its `scaling_factor` becomes the one number that gives latents the deviation
    sigma_data of the preconditioning.

    Args:
        settings: they may name the folder of the files.
        sampled: keep the moments of the posterior, so that each step draws latents of its own.
        mirrored: encode mirrored images, too: a mirrored latent is not the latent of the mirrored image.
        accelerator: of its processes, one on each machine encodes.

    Raises:
        UserError: images that the autoencoder does not take, one without a posterior that is to be sampled, or latents
            that are all alike or no numbers.
    """
    if sampled and not hasattr(vae, "quant_conv"):
        raise UserError(f"`vae_sample` needs a posterior, which {type(vae).__name__} has not: leave it out.")
    latent_shape(vae, images.shape)
    place = (settings and settings.image_cache_dir) or os.path.join(datasets.config.HF_DATASETS_CACHE, "diffusers-ict")
    device = torch.device("cpu") if accelerator is None else accelerator.device
    vae.to(device).eval().requires_grad_(False)
    key = [LAYOUT, images.fingerprint(), fingerprint(vae), sampled]
    shown = accelerator is None or accelerator.is_local_main_process
    with nullcontext() if accelerator is None else accelerator.local_main_process_first():
        each = []
        for flip in (False, True)[: 1 + mirrored]:
            file = Path(place) / f"latents-{fingerprint_of([*key, flip])}.safetensors"
            each.append(_cached(file, images, vae, sampled, flip, shown))
    scale = _scale(each[0], sampled)
    vae.register_to_config(scaling_factor=scale, _name_or_path="")
    if "shift_factor" in vae.config:  # which LDMPipeline does not know
        vae.register_to_config(shift_factor=None)
    rows = each[0] if len(each) == 1 else torch.cat(each, 1)
    return Latents(rows.mul_(scale), images, vae, sampled, mirrored)


def _cached(file: Path, images: Images, vae: Autoencoder, sampled: bool, flip: bool, shown: bool) -> Tensor:
    """The rows of a file; where it is not there, or is damaged, they are computed and written."""
    channels, height, width = latent_shape(vae, images.shape)
    shape = (len(images), channels * (1 + sampled), height, width)
    if file.is_file():
        try:
            rows = read_tensors(file)[0]["latents"]
            if tuple(rows.shape) == shape and rows.dtype == torch.float32:
                return rows
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        warnings.warn(f"the file {file} is not as it was written, so the images are encoded again.", stacklevel=4)
    rows = _encoded(images, vae, torch.empty(shape), sampled, flip, shown)
    try:
        with atomic_file(file) as temporary:
            save_file({"latents": rows}, temporary)
    except (OSError, SafetensorError) as error:
        raise UserError(f"`image_cache_dir` {file.parent} cannot hold the latents: {error}") from error
    return rows


def _encoded(images: Images, vae: Autoencoder, rows: Tensor, sampled: bool, flip: bool, shown: bool) -> Tensor:
    """Unscaled rows, [n, C or 2 C, H, W], written into `rows`."""
    device = next(vae.parameters()).device
    what = "encoding mirrored images" if flip else "encoding"
    with progress_bar(len(images), "image", shown=shown, desc=what) as bar:
        for start in range(0, len(images), AT_ONCE):
            x = to_unit(images.part(slice(start, start + AT_ONCE))[0], None, device)
            mean, deviation = encode(vae, x.flip(-1) if flip else x)
            parts = (mean, deviation) if sampled and deviation is not None else (mean,)
            rows[start : start + AT_ONCE] = torch.cat(parts, 1).cpu()
            bar.update(len(x))
    if not rows.isfinite().all():
        raise UserError("the autoencoder gives latents that are not numbers: its weights are broken.")
    return rows


def _scale(rows: Tensor, sampled: bool) -> float:
    """sigma_data by the standard deviation of all latents, about their mean: that of drawn ones where there are such.

    Raises:
        UserError: they are all alike.
    """
    total, squares, variances, count = 0.0, 0.0, 0.0, 0
    for part in rows.split(SUMMED):
        mean, *deviation = part.double().chunk(1 + sampled, 1)
        total, squares, count = total + mean.sum().item(), squares + mean.square().sum().item(), count + mean.numel()
        variances += sum(each.square().sum().item() for each in deviation)
    variance = (squares + variances) / count - (total / count) ** 2
    if not variance > 1e-12:
        raise UserError("the autoencoder gives all images the same latents, of which nothing can be learned.")
    return SIGMA_DATA / variance**0.5
