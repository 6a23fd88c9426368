"""A plot of a run's losses by range of noise levels, made from its log."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from ..files import atomic_file

STAGES = {"num_levels": "N", "stage": "stage"}  # what logs count the stages of a run by, and its name in plots


def switches(entries: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(step, N or stage) wherever it has changed, from the entries of a run's log."""
    pairs = list(pairwise(entries))
    return [(b["step"], b[key]) for key in STAGES for a, b in pairs if key in b and a.get(key) != b[key]]


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
    name = "".join(name for key, name in STAGES.items() if entries and key in entries[0])
    note = f" (dotted: {name} becomes the number above)" if name else ""
    axes.set(yscale="log", xlabel=f"optimizer step{note}", ylabel="weighted loss")
    axes.legend(title="sigma", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
