"""Analysis of a consistency model: f along a noise ray, where it is inconsistent, and whether samples are copies."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_file
from ..formulas.preconditioning import ConsistencyFunction
from .neighbours import nearest, neighbour_distances


@torch.no_grad()
def estimates_along(
    f: ConsistencyFunction, x: Tensor, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None
) -> Tensor:
    """f(x + sigma z, sigma) for every level: what the model makes of ever noisier versions of the same images.

    Args:
        x, noise: [B, C, H, W], images in [-1, 1]; sigmas: [N]; labels: [B] or None.

    Returns:
        [N, B, C, H, W]. A perfectly consistent model gives the same for every level of one trajectory; x + sigma z is
        one only near the data, so estimates drift apart as noise grows, but smoothly.
    """
    out = []
    for sigma in sigmas:
        level = sigma.repeat(len(x)).to(x.device)
        out.append(f(x + sigma.to(x) * noise, level, labels))
    return torch.stack(out)


def consistency_gap(estimates: Tensor) -> Tensor:
    """Root mean square difference between the estimates at neighbouring levels: [N, B, C, H, W] -> [N - 1].

    What training makes small, before weights: iCT (arXiv:2310.14189) Eq. 1 with the squared distance.
    """
    return (estimates[1:] - estimates[:-1]).square().flatten(1).mean(1).sqrt()


@dataclass(frozen=True)
class Memorisation:
    """How near samples are to training images.

    Attributes:
        distances, indices: to the nearest training image, and which, for each sample [n].
        typical: median distance of a training image to the nearest other one.
        copies: share of samples nearer to a training image than half of that image's distance to any other one.
    """

    distances: Tensor
    indices: Tensor
    typical: float
    copies: float


def memorisation(samples: Tensor, training: Tensor) -> Memorisation:
    """How near samples [n, d] are to training images [m, d], by features."""
    distances, indices = nearest(samples, training)
    (own,) = neighbour_distances(training.float(), (1,))
    copies = (distances < own[indices] / 2).double().mean().item()
    return Memorisation(distances, indices, own.median().item(), copies)


STAGE_NAMES = {"num_levels": "N", "stage": "stage"}  # what logs call the state of a curriculum, and plots


def stage_key(entries: list[dict[str, Any]]) -> str:
    """What the entries of a run's log call its stages, one of STAGE_NAMES; empty where they have none."""
    return next((key for key in STAGE_NAMES if entries and key in entries[0]), "")


def switches(entries: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(step, N or stage) wherever it has changed, from the entries of a run's log."""
    key = stage_key(entries)
    return [(b["step"], b[key]) for a, b in pairwise(entries) if a.get(key) != b.get(key)]


def plot_losses_by_sigma(entries: list[dict[str, Any]], target: Path) -> None:
    """Loss over the steps, one line for each range of noise levels, with its `switches` marked, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no global state and no display

    names = list(dict.fromkeys(name for entry in entries for name in entry["loss_by_sigma"]))
    names.sort(key=lambda name: float(name.split("-")[0]))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        points = [(e["step"], e["loss_by_sigma"][name]) for e in entries if name in e["loss_by_sigma"]]
        axes.plot(*zip(*points), linewidth=0.9, label=name, color=colormaps["viridis"](number / max(1, len(names) - 1)))
    for step, stage in switches(entries):
        axes.axvline(step, color="grey", linewidth=0.6, linestyle="dotted")
        axes.annotate(f"{stage}", (step, 1), xycoords=("data", "axes fraction"), fontsize=7, ha="left", va="bottom")
    key = stage_key(entries)
    note = f" (dotted: {STAGE_NAMES[key]} becomes the number above)" if key else ""
    axes.set(yscale="log", xlabel=f"optimizer step{note}", ylabel="weighted loss")
    axes.legend(title="sigma", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def plot_gap(sigmas: Tensor, gap: Tensor, target: Path) -> None:
    """The gap between neighbouring levels over sigma, as PNG. A consistent model has a small and smooth one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sigmas[1:].cpu(), gap.cpu(), marker=".")
    worst = int(gap.argmax())
    axes.annotate(f"largest: {gap[worst]:.2g}", (sigmas[worst + 1].item(), gap[worst].item()), (6, 0),
                  textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="sigma", ylabel="RMS difference of neighbouring outputs")
    axes.set_title(f"Gap between neighbours of {len(sigmas)} levels: lower and smoother is better", fontsize=10)
    axes.margins(x=0.15)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
