"""What a consistency model does along its noise levels, and which of its samples are copies of training images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Images
from ..data.load import load_images
from ..data.own_output import check_apart
from ..data.settings import DataSettings
from ..data.transform import to_unit
from ..errors import UserError
from ..files import atomic_file, write_json
from ..formulas.noise_schedule import karras_sigmas
from ..formulas.preconditioning import Condition, Told
from ..formulas.residual import from_residual, to_residual
from ..hub.card import write_card
from ..hub.metadata import RunMetadata
from ..image_grid import as_pictures, labelled_blocks
from ..loading import load_consistency
from ..pipeline_consistency import ConsistencyPipeline
from ..processes import best_device
from .extractors import make_extractor
from .features import exact_device
from .metrics import centred, neighbour_distances
from .samples import conditions_of, drawer, image_shape


def inspect(
    model: str, data: DataSettings, folder: Path, extractor_name: str, extractor_weights: str | None, count: int
) -> dict[str, Any]:
    """Write the pictures and inspection.json into a folder, and the latter beside the model, whose card it renews.

    Args:
        model: folder or Hub id of a consistency pipeline; data: its training images.
        extractor_name, extractor_weights: of the features that nearness is measured by; count: samples drawn for it.

    Returns:
        what inspection.json holds.

    Raises:
        UserError: the model or the images cannot be read, or do not fit each other.
    """
    check_apart(data, "output_dir", folder)
    pipeline = load_consistency(model).to(best_device())
    conditional = pipeline.num_classes is not None
    images = load_images(data, class_conditional=conditional, normalization=pipeline.normalization)
    if images.shape != image_shape(pipeline):
        (c, h, w), (channels, height, width) = images.shape, image_shape(pipeline)
        raise UserError(
            f"training images must be like the model's, {width}x{height} of {channels} channels, and are {w}x{h} of "
            f"{c}; convert them with `resolution` and `image_mode`."
        )
    extractor = make_extractor(extractor_name, extractor_weights, pipeline.device, pipeline.normalization is None)
    folder.mkdir(parents=True, exist_ok=True)
    report = along_the_noise(pipeline, images, folder)
    report |= neighbours(pipeline, images, extractor, count, folder)
    write_json(folder / "inspection.json", report)
    if Path(model).is_dir():
        write_json(Path(model) / "inspection.json", report)
    if (Path(model) / RunMetadata.file_name).is_file():
        write_card(Path(model))
    return report


def along_the_noise(pipeline: ConsistencyPipeline, images: Images, folder: Path) -> dict:
    """along_sigma.png and gap.png: the first noisy image, then f of six images, with noise growing to the right."""
    device = pipeline.device
    f = pipeline.scheduler.consistency_function(pipeline.unet)
    conditions_of(pipeline, images, 0)  # refuses data with others than the model's
    count = min(64, len(images))
    shown = torch.arange(count) * (len(images) // count)
    pixels, labels = images.part(shown)
    x = pipeline.encode_images(to_unit(pixels, None, device))
    labels = None if labels is None else labels.to(device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas = karras_sigmas(41)
    told: Told = labels
    scale = pipeline.scheduler.config.residual_scale
    if images.condition is not None:
        given = images.condition.batch(shown, None, device)[0]
        told = Condition(labels, given)
        if scale is not None:
            x = to_residual(x, given, scale)
    estimates = estimates_along(f, x, noise, sigmas, told)
    gap = consistency_gap(estimates)
    plot_gap(sigmas, gap, folder / "gap.png")
    levels, rows = sigmas[::4], 6
    noisy = torch.stack([x[:rows] + sigma.to(x) * noise[:rows] for sigma in levels])
    along = noisy, estimates[::4, :rows]
    if scale is not None:
        along = from_residual(along[0], given[:rows], scale), from_residual(along[1], given[:rows], scale)
    drawn = along[0][:, :1].flatten(0, 1), along[1].transpose(0, 1).flatten(0, 1)
    named = zip(("x + sigma z", "f(x + sigma z, sigma)"), drawn)
    blocks = {name: as_pictures(pipeline.decode_images(sample)) for name, sample in named}
    labelled_blocks(blocks, len(levels), [f"{sigma:.3g}" for sigma in levels]).save(folder / "along_sigma.png")
    worst = int(gap.argmax())
    return {
        "sigmas": sigmas.tolist(),
        "gap": gap.tolist(),
        "largest_gap": gap[worst].item(),
        "largest_gap_at": sigmas[worst + 1].item(),
    }


def neighbours(pipeline: ConsistencyPipeline, images: Images, extractor, count: int, folder: Path) -> dict:
    """neighbours.png: the samples that are nearest to a training image, each above that image, by distance."""
    levels = [float(level) for level in pipeline.scheduler.sampling_sigmas(2)]
    by_class = images if pipeline.num_classes else None
    draw = drawer(pipeline, by_class, 0, levels, conditions_of(pipeline, images, 0))
    drawn = torch.cat([draw(numbers).cpu() for numbers in torch.arange(count).split(250)])
    features, training = (
        torch.cat([extractor.features(part(numbers))[0] for numbers in torch.arange(total).split(250)])
        for part, total in ((lambda rows: drawn[rows], count), (lambda rows: images.part(rows)[0], len(images)))
    )
    exact = exact_device(pipeline.device)
    distances, indices, typical, copies = memorisation(features.to(exact), training.to(exact))
    distances, indices = distances.cpu(), indices.cpu()
    first = distances.argsort()[:12]
    pair = {"sample": drawn[first], "nearest image": images.part(indices[first])[0]}
    blocks = {name: as_pictures(to_unit(pixels, None, "cpu")) for name, pixels in pair.items()}
    names = [f"{distance:.3g}" for distance in distances[first].tolist()]
    labelled_blocks(blocks, len(first), names).save(folder / "neighbours.png")
    return {
        "samples": count,
        "extractor": extractor.name,
        "copies": copies,
        "nearest_distance_quantiles": np.quantile(distances.numpy(), [0, 0.05, 0.5, 0.95]).tolist(),
        "typical_distance_within_training": typical,
    }


@torch.no_grad()
def estimates_along(f, x: Tensor, noise: Tensor, sigmas: Tensor, labels: Told = None) -> Tensor:
    """f(x + sigma z, sigma) for every level: what the model makes of ever noisier versions of the same images.

    Args:
        f: a `ConsistencyFunction`.
        x, noise: [B, C, H, W], images in [-1, 1]; sigmas: [N]; labels: [B], a `Condition`, or None.

    Returns:
        [N, B, C, H, W]. A perfectly consistent model gives the same for every level of one trajectory; x + sigma z is
        one only near the data, so estimates drift apart as noise grows, but smoothly.
    """
    levels = [sigma.repeat(len(x)).to(x.device) for sigma in sigmas]
    return torch.stack([f(x + sigma.to(x) * noise, level, labels) for sigma, level in zip(sigmas, levels)])


def consistency_gap(estimates: Tensor) -> Tensor:
    """Root mean square difference between the estimates at neighbouring levels: [N, B, C, H, W] -> [N - 1].

    What training makes small, before weights: iCT (arXiv:2310.14189) Eq. 1 with the squared distance.
    """
    return (estimates[1:] - estimates[:-1]).square().flatten(1).mean(1).sqrt()


def memorisation(samples: Tensor, training: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """How near samples [n, d] are to training images [m, d], by features.

    Returns:
        Distance to the nearest training image, and which it is, for each sample [n]; the median distance of a training
        image to the nearest other one; the share of samples that are copies: nearer to a training image than half of
        that image's distance to any other one.
    """
    samples, training = centred(samples, training)
    parts = [torch.cdist(rows, training).min(1) for rows in samples.split(1000)]
    distances, indices = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    (spacing,) = neighbour_distances(training, (1,))
    copies = (distances < spacing[indices] / 2).double().mean().item()
    return distances, indices, spacing.median().item(), copies


def plot_gap(sigmas: Tensor, gap: Tensor, target: Path) -> None:
    """The gap between neighbouring levels over sigma, as PNG. A consistent model has a small and smooth one."""
    from matplotlib.figure import Figure  # no global state and no display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sigmas[1:].cpu(), gap.cpu(), marker=".")
    worst = int(gap.argmax())
    largest = f"largest: {gap[worst]:.2g} at sigma {sigmas[worst + 1]:.2g}"
    axes.set(xscale="log", yscale="log", xlabel="sigma", ylabel="RMS difference of neighbouring outputs")
    title = f"Gap between neighbours of {len(sigmas)} levels: lower and smoother is better"
    axes.set_title(f"{title}\n{largest}", fontsize=10)  # above the panel, where no curve is
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
