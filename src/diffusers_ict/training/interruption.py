"""Stopping early without loss: signals, a time limit, and a launcher that is gone."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch", "torch.distributed.run"}


class Interruption:
    """Tells a training loop to stop after the step that it is in.

    As a context manager it takes SIGTERM, SIGINT and, where it exists, SIGUSR1, by which Slurm announces the end of a
    job. The first signal asks the run to stop; the second ends the process at once, as it would without this class.
    Python hands signals to the main thread alone: in other threads, only the limits count.

    Args:
        minutes: after which the run stops, counted from now; None for no limit.
    """

    def __init__(self, accelerator: Accelerator, minutes: float | None = None) -> None:
        self.accelerator = accelerator
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.launcher = _launcher()
        self.received: int | None = None
        self.before: dict[int, Any] = {}
        self.sent: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def reason(self) -> str | None:
        """Why the run is to stop now, or None. To be asked by all processes together, after each step.

        Several processes hear what each of them had to say one step before: that message has arrived by now, and no
        device is waited for.
        """
        own = self._own_reason()
        if self.accelerator.num_processes == 1:
            return own
        votes = torch.full((), float(own is not None), device=self.accelerator.device)
        before, self.sent = self.sent, (dist.all_reduce(votes, async_op=True), votes)
        if before is None:
            return None
        work, votes = before
        work.wait()
        return (own or "another process was asked to stop") if votes > 0 else None

    def _own_reason(self) -> str | None:
        if self.received is not None:
            return f"received {signal.Signals(self.received).name}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "reached the end of `max_train_minutes`"
        if self.launcher is not None and os.getppid() != self.launcher:
            return "its launcher is gone"
        return None


def _launcher() -> int | None:
    """The process that started this one, if it is a launcher: without it, nobody would know of this process."""
    try:
        parent = psutil.Process(os.getppid())
        known = any(Path(word).name in LAUNCHERS for word in parent.cmdline()[:4])
    except psutil.Error:
        return None
    return parent.pid if known else None
