"""Plots of a training run, made from its log."""

from pathlib import Path
from typing import Any

from .log import read_log


def plot_training(log: Path, target: Path) -> None:
    """Plot a run's log over the steps, as PNG.

    Loss divided by the mean weight of its stage, so that stages can be compared; number of noise levels; and for ACT
    the discriminator's loss, its running gradient penalty r against tau, and the strength p of the augmentation.
    """
    from matplotlib.figure import Figure  # no global state and no display

    entries = read_log(log)
    adversarial = any("discriminator_loss" in entry for entry in entries)
    figure = Figure(figsize=(8, 8 if adversarial else 5), layout="constrained")
    panels = figure.subplots(4 if adversarial else 2, 1, sharex=True)

    def curve(panel: int, name: str, **style: Any) -> None:
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        if points:
            panels[panel].plot(*zip(*points), linewidth=0.8, label=name, **style)
            panels[panel].legend(loc="upper left" if name == "num_levels" else "upper right")

    curve(0, "loss_unweighted")
    panels[0].set(yscale="log", ylabel="loss / mean weight")
    curve(1, "num_levels", drawstyle="steps-post")
    panels[1].set(yscale="log", ylabel="noise levels N")
    if adversarial:
        curve(2, "discriminator_loss")
        curve(2, "discriminator_accuracy")
        for name in ("r1", "augment_r", "augment_tau"):
            curve(3, name)
        panels[3].set(yscale="log", ylabel="gradient penalty")
        strength = panels[3].twinx()
        points = [(entry["step"], entry["augment_p"]) for entry in entries if "augment_p" in entry]
        if points:
            strength.plot(*zip(*points), color="black", linestyle="dotted")
        strength.set(ylim=(0, 1), ylabel="augment_p (dotted)")
    panels[-1].set(xlabel="optimizer step")
    figure.savefig(target, dpi=120)
