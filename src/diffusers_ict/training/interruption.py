"""Stopping early without loss: signals, a time limit, and a launcher that is gone."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from accelerate import Accelerator

from ..invocation import launcher

CHECK_EVERY = 8  # steps between two questions to the other processes, each of which waits for the device
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """Tells a training loop to stop after the step that it is in, or a few later where there are several processes.

    As a context manager it takes SIGTERM, SIGINT and, where they exist, SIGUSR1, by which Slurm announces the end of a
    job, and SIGHUP, which comes when a terminal is lost; but none that is ignored, as `nohup` has it. The first signal
    asks the run to stop; the second ends the process at once, as it would without this class. Python hands signals to
    the main thread alone: in other threads, only the limits count.

    Args:
        minutes: after which the run stops, counted from now; None for no limit.
    """

    def __init__(self, accelerator: Accelerator, minutes: float | None = None) -> None:
        self.accelerator = accelerator
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.launcher = None if (process := launcher()) is None else process.pid
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._receive) for number in heeded}
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

    def reason(self, step: int) -> str | None:
        """Why the run is to stop after optimizer step `step` (from 0), or None. To be asked after each step.

        One process stops after the step that it is in; several agree on it within a few steps.
        """
        reason = self._reason_here()
        if self.accelerator.num_processes == 1:
            return reason
        if reason is not None:
            self.accelerator.set_trigger()
        if (step + 1) % CHECK_EVERY or not self.accelerator.check_trigger():
            return None
        return reason or "another process was asked to stop"

    def _reason_here(self) -> str | None:
        if self.received is not None:
            return f"received {signal.Signals(self.received).name}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "reached the end of `max_train_minutes`"
        if self.launcher is not None and os.getppid() != self.launcher:
            return "its launcher is gone"
        return None
