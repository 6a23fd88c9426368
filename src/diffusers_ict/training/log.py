"""The log of a run: losses by noise level, speed, a progress bar, and a file of JSON lines."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..errors import TrainingDiverged
from ..files import write_text
from ..progress import progress_bar

# Edges of the bins by which losses are reported, in units of sigma.
BIN_EDGES = (0.002, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0)


TIMES = (("minute", 60, 7200.0), ("hour", 3600, 172800.0), ("day", 86400, float("inf")))
DRY_RUN_SECONDS = 30.0  # a dry run begins no step after so many
LONG_SECONDS = 48 * 3600.0  # a longer run than this gets advice


def rounded_time(seconds: float) -> str:
    """A time with as many digits as an estimate has, in minutes up to two hours and in hours up to two days."""
    unit, length = next((u, n) for u, n, up_to in TIMES if seconds < up_to)
    count = seconds / length
    if count < 1:
        return f"less than a {unit}"
    count = round(count) if count < 100 else int(float(f"{count:.2g}"))
    return f"about {count} {unit}{'s' * (count != 1)}"


def bin_name(index: int) -> str:
    """The range of noise levels of a bin, as in "0.2-0.5"."""
    return f"{BIN_EDGES[index]:g}-{BIN_EDGES[index + 1]:g}"


class Metrics:
    """Losses and figures since the last log entry, the clock, the progress bar, and the log.

    Tensors stay on the device until an entry is written: no step waits for them.

    Args:
        accelerator: whose processes are averaged over, and whose trackers get every entry.
        log: file of JSON lines; None on processes that do not write it.
        total_steps, first_step: of the run, and those done before it was resumed.
        seconds: trained before it was resumed.
        tracking: whether the accelerator has a tracker.
        quiet: show no progress bar.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        log: Path | None,
        total_steps: int,
        first_step: int = 0,
        seconds: float = 0.0,
        tracking: bool = False,
        quiet: bool = False,
    ) -> None:
        self.accelerator, self.tracking = accelerator, tracking
        self.log = None if log is None else JSONLines(log, first_step)
        self.train_seconds = seconds
        self.losses: list[tuple[int, Tensor, Tensor]] = []
        self.figures: dict[str, Tensor | float] = {}
        shown = accelerator.is_main_process and not quiet
        self.progress = progress_bar(total_steps, "step", shown=shown, initial=first_step)
        self.step_ends: list[float] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds and images from now on; what came since the last entry is not counted as training."""
        self.images, self.clock = 0, time.perf_counter()

    def add_losses(self, step: int, loss: Tensor, sigma: Tensor) -> None:
        """Losses [B] of one micro batch of step `step` and the noisier level [B] of each pair."""
        self.losses.append((step, loss.detach().float(), sigma))

    def add_figures(self, figures: dict[str, Tensor | float]) -> None:
        """Figures of a step, tensors as means over this process; the last ones before an entry are logged."""
        self.figures |= figures

    def count_step(self, images: int) -> None:
        """One optimizer step over so many images is done."""
        self.progress.update()
        self.images += images
        self.step_ends = [*self.step_ends[-7:], time.perf_counter()]

    def write(self, step: int, mean_weight: float, schedule: dict[str, float]) -> None:
        """Write a log entry after `step` optimizer steps. Waits for the device.

        Raises:
            TrainingDiverged: a loss since the last entry is not a number.
        """
        entry = self._losses()
        seconds = time.perf_counter() - self.clock
        self.train_seconds += seconds
        entry |= {
            "step": step,
            "loss_unweighted": entry["loss"] / mean_weight,
            **schedule,
            "images_per_second": self.images / seconds,
            "train_seconds": self.train_seconds,
            **{name: self._mean(value) for name, value in self.figures.items()},
        }
        self.figures = {}
        shown = {"loss": f"{entry['loss']:.3g}", **schedule, "images/s": f"{entry['images_per_second']:.0f}"}
        self.progress.set_postfix(shown, refresh=False)
        if self.log is not None:
            self.log.write(entry)
        if self.tracking:
            # Trackers are given the step beside the entry, and some keep the name for themselves.
            self.accelerator.log(flat({key: value for key, value in entry.items() if key != "step"}), step)

    def measured_enough(self) -> bool:
        """Whether a dry run has taken its time, on any process; all of them have to ask."""
        return max(gather_object([time.perf_counter() - self.clock])) > DRY_RUN_SECONDS

    def estimate(self, total_steps: int) -> str:
        """The time that so many steps will take, from the steps so far, and memory of the GPU.

        The first step, in which everything warms up, counts only where it is the only one.
        """
        _ = [float(loss.mean()) for _, loss, _ in self.losses[-1:]]  # waits for the device
        ends = [*self.step_ends[:-1], time.perf_counter()]
        intervals = [b - a for a, b in pairwise(ends)] or [ends[0] - self.clock]
        seconds = total_steps * sum(intervals) / len(intervals)
        number = f"{len(intervals)} step{'s' * (len(intervals) > 1)}"
        told = f"time        {rounded_time(seconds)} here, from {number} measured"
        if seconds > LONG_SECONDS:
            remedy = "--config small_budget, or a GPU" if self.accelerator.device.type == "cpu" else "a smaller network"
            told += f": use fewer --max_train_steps, {remedy}"
        if self.accelerator.device.type == "cuda":
            peak, room = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
            told += f"\nmemory      {peak / 2**30:.2f} of {room / 2**30:.0f} GiB on the GPU at the peak of these steps"
        return told

    def _mean(self, value: Tensor | float) -> float:
        """The mean over the processes."""
        return float(self.accelerator.reduce(value, "mean")) if isinstance(value, Tensor) else value

    def _losses(self) -> dict[str, Any]:
        """Mean loss and mean by bin over all processes since the last entry.

        Raises:
            TrainingDiverged: some loss is not finite; says at which step and noise levels. On every process.
        """
        steps = torch.cat([torch.full_like(loss, step) for step, loss, _ in self.losses])
        losses = torch.cat([loss for _, loss, _ in self.losses])
        sigmas = torch.cat([sigma for _, _, sigma in self.losses])
        self.losses = []
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
        # Damaged lines are dropped: a log is no reason to stop.
        lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        kept = [line for line in lines if (step := _step(line)) is not None and step <= first_step]
        write_text(path, "".join(line + "\n" for line in kept))

    def write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _step(line: str) -> int | None:
    """The step of an entry that is whole, else None."""
    try:
        entry = json.loads(line)
        whole = "\N{REPLACEMENT CHARACTER}" not in line and {"loss", "loss_unweighted"} <= entry.keys()
        return int(entry["step"]) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def flat(entry: dict[str, Any]) -> dict[str, float]:
    """Nested entries as "loss_by_sigma/1-2", for trackers that take plain numbers."""
    out: dict[str, float] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            out |= {f"{key}/{name}": number for name, number in value.items()}
        else:
            out[key] = value
    return out
