"""Plots of a training run, made from its log."""

from itertools import groupby
from pathlib import Path
from typing import Any

from .log import read_log


def plot_training(log: Path, target: Path, stage_name: tuple[str, str] | None = None) -> None:
    """Plot a run's log over the steps, as PNG.

    The loss of iCT doubles at each stage of the curriculum, so that it is shown relative to its mean over the stage: it
    falls within a stage as long as the model learns. Stages are shaded in turn. ACT adds the losses of the
    discriminator, and with augmentation its signal r against tau and its strength p.

    Args:
        stage_name: `Objective.stage_name`, by which stages are told apart and named.
    """
    from matplotlib.figure import Figure  # no global state and no display

    entries = read_log(log)
    adversarial = any("discriminator_loss" in entry for entry in entries)
    augmented = any("augment_p" in entry for entry in entries)
    figure = Figure(figsize=(8, 3 + 2 * adversarial + 2 * augmented), layout="constrained")
    panels = figure.subplots(1 + adversarial + augmented, 1, sharex=True, squeeze=False)[:, 0]
    _plot_loss(panels[0], entries, stage_name)
    if adversarial:
        for name in ("discriminator_loss", "discriminator_accuracy"):
            _curve(panels[1], entries, name)
        panels[1].set(ylabel="discriminator", ylim=(0, None))
    if augmented:
        for name, style in (("augment_r", "-"), ("augment_tau", "--")):
            _curve(panels[2], entries, name, linestyle=style)
        panels[2].set(ylabel="r and tau")
        strength = panels[2].twinx()
        _curve(strength, entries, "augment_p", color="black", linestyle=":")
        strength.set(ylim=(-0.02, 1.02), ylabel="p (dotted)")
    for panel in panels[1:]:
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)  # above the curves
    panels[-1].set(xlabel="optimizer step")
    figure.savefig(target, dpi=120)


def _curve(panel: Any, entries: list[dict[str, Any]], name: str, **style: Any) -> None:
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    if points:
        panel.plot(*zip(*points), linewidth=0.9, label=name, **style)


def _plot_loss(panel: Any, entries: list[dict[str, Any]], stage_name: tuple[str, str] | None) -> None:
    """The loss relative to its mean over each stage."""
    key, symbol = stage_name or ("", "")
    stages = [list(stage) for _, stage in groupby(entries, key=lambda entry: entry.get(key))]
    shaded = 1 < len(stages) <= 10  # CT changes its grid too often for stages to be seen
    pieces = stages if shaded else [entries]
    for number, stage in enumerate(pieces):
        steps = [entry["step"] for entry in stage]
        losses = [entry["loss_unweighted"] for entry in stage]
        mean = sum(losses) / len(losses) or 1.0
        panel.plot(steps, [loss / mean for loss in losses], linewidth=0.6, color="C0")
        if shaded:
            end = pieces[number + 1][0]["step"] if number + 1 < len(pieces) else steps[-1]
            panel.axvspan(steps[0], max(end, steps[0] + 1), color="grey", alpha=0.06 + 0.1 * (number % 2), linewidth=0)
            name = f"{stage[0][key]}"
            if number == 0:
                name = f"{symbol} = {name}"
            panel.annotate(name, (steps[0], 1.01), xycoords=("data", "axes fraction"), fontsize=7)
    panel.set(yscale="log", ylabel="loss / mean of its stage" if shaded else "loss / its mean")
