"""What a run tells of itself: losses by noise level, JSON lines, and a plot made from them."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

# Edges of the bins by which losses are reported, in units of sigma.
BIN_EDGES = (0.002, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0)


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer a number."""


def bin_name(index: int) -> str:
    return f"{BIN_EDGES[index]:g}-{BIN_EDGES[index + 1]:g}"


class LossRecord:
    """Losses and noise levels of the steps since the last summary, kept on the device: no step waits for them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.entries: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, loss: Tensor, sigma: Tensor) -> None:
        """Losses [B] of one part of step `step` and the noisier level [B] of each pair."""
        self.entries.append((step, loss.detach().float(), sigma))

    def summary(self) -> dict[str, Any]:
        """Mean loss and mean by bin over all processes since the last call; {} if there was nothing.

        Raises:
            TrainingDiverged: some loss is not finite; says at which step and noise levels. On every process.
        """
        if not self.entries:
            return {}
        steps = torch.cat([torch.full_like(loss, step) for step, loss, _ in self.entries])
        losses = torch.cat([loss for _, loss, _ in self.entries])
        sigmas = torch.cat([sigma for _, _, sigma in self.entries])
        self.entries = []
        columns = torch.stack([steps, losses, sigmas.float()], 1)
        steps, losses, sigmas = self.accelerator.gather(columns).cpu().T.contiguous()
        bins = torch.bucketize(sigmas, torch.tensor(BIN_EDGES[1:-1]))
        bad = ~losses.isfinite()
        if bad.any():
            step = int(steps[bad].min())
            where = sorted({int(b) for b in bins[bad & (steps == step)]})
            raise TrainingDiverged(
                f"the loss of step {step} is not a number at sigma {', '.join(map(bin_name, where))}"
            )
        by_bin = {bin_name(int(b)): losses[bins == b].mean().item() for b in bins.unique()}
        return {"loss": losses.mean().item(), "loss_by_sigma": by_bin}


class JSONLines:
    """One JSON object a line, on disk as soon as it is written. A resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) is not None and _step(line) <= first_step]
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _step(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None  # a line cut short by a kill


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def flat(entry: dict[str, Any]) -> dict[str, float]:
    """Nested entries as "loss_by_sigma/1-2", for trackers that take plain numbers."""
    out: dict[str, float] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            out |= {f"{key}/{name}": number for name, number in value.items()}
        else:
            out[key] = value
    return out


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
