"""Stopping early without loss: signals, a time limit, and a launcher that is gone."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch import distributed as dist

from ..invocation import followed
from ..processes import ON_CPUS

CHECK_EVERY = 8  # steps between two questions to the other processes, each of which waits for the slowest
STUCK_SECONDS = 60.0  # that a step may take once a signal has come
STOPPED = 3  # exit code
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class Watch:
    """A thread that sees signals also while the main thread is held up in a library, which Python's handlers wait for.

    Args:
        numbers: of the signals; stuck: says whether a step has taken so many seconds; farewell: gives a sentence.
    """

    def __init__(self, numbers: set[int], stuck: Callable[[float], bool], farewell: Callable[[], str]) -> None:
        self.numbers, self.stuck, self.farewell, self.closed = numbers, stuck, farewell, threading.Event()
        self.seen, written = socket.socketpair()
        written.setblocking(False)
        self.written = written
        self.before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Look no longer, and let go of the signals."""
        self.closed.set()
        signal.set_wakeup_fd(self.before)
        self.written.shutdown(socket.SHUT_RDWR)  # `close` alone ends nothing that forked processes have, too
        self.written.close()
        self.thread.join()
        self.seen.close()

    def _run(self) -> None:
        while heard := self.seen.recv(64):  # nothing once the other end is shut down
            if self.numbers & set(heard):
                break
        began = time.monotonic()
        while heard and not self.closed.wait(0.2):
            waited = time.monotonic() - began
            if waited >= STUCK_SECONDS and self.stuck(STUCK_SECONDS):
                sys.stderr.write(self.farewell())
                sys.stderr.flush()
                os._exit(STOPPED)


class Interruption:
    """Tells a training loop to stop after the step that it is in, or a few later where there are several processes.

    As a context manager it takes SIGTERM, SIGINT and, where they exist, SIGUSR1, by which Slurm announces the end of a
    job, and SIGHUP, which comes when a terminal is lost; but none that is ignored, as `nohup` has it. The first signal
    asks the run to stop; the second ends the process at once, as it would without this class. A step that does not end
    within a minute of the first one waits for something that will not come: then the process ends with a sentence.
    Python hands signals to the main thread alone: in other threads, only the limits count.

    Processes vote on the CPU, and read the outcome a step later, so that no device is waited for.

    Args:
        minutes: after which the run stops, counted from now; None for no limit.
        farewell: gives the sentence of a process that ends in the middle of a step.
    """

    def __init__(
        self, accelerator: Accelerator, minutes: float | None = None, farewell: Callable[[], str] = lambda: "stopped"
    ) -> None:
        self.farewell = farewell
        self.group = ON_CPUS[0] if accelerator.num_processes > 1 else None
        self.ballot: tuple[Tensor, dist.Work] | None = None
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.launcher = followed()
        self.received: int | None = None
        self.step_began: float | None = None
        self.before: dict[int, Any] = {}
        self.watch: Watch | None = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.watch = Watch(set(heeded), self._is_stuck, self.farewell)
            self.before = {number: signal.signal(number, self._receive) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        before = self.before.get(signal.SIGTERM)
        self._restore()
        if before is not None and self.group is not None and kind is not None:
            # Where one process has died, its launcher ends the others by this signal, once. They are about to end by
            # themselves, and are to say why.
            signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, before))
        if self.watch is not None:
            self.watch.close()
        if kind is None and self.ballot is not None:  # nobody asks for its outcome after the last step
            self.ballot[1].wait()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _is_stuck(self, seconds: float) -> bool:
        """Whether the loop has been in one step for so long."""
        return self.step_began is not None and time.monotonic() - self.step_began >= seconds

    def begin_step(self) -> None:
        """To be told at the beginning of each step."""
        self.step_began = time.monotonic()

    def reason(self, step: int) -> str | None:
        """Why the run is to stop after optimizer step `step` (from 0), or None. To be asked after each step.

        One process stops after the step that it is in; several agree on it within a few steps.
        """
        reason = self._reason_here()
        if self.group is not None:
            reason = self._vote(step, reason)
        self.step_began = None  # only now: a vote can be stuck, too
        return reason

    def _vote(self, step: int, reason: str | None) -> str | None:
        """Why the run is to stop, or None, by the outcome of the last vote; every few steps, begin a new one."""
        if self.ballot is not None:
            votes, work = self.ballot
            work.wait()
            self.ballot = None
            if votes.item():
                return reason or "another process was asked to stop"
        if (step + 1) % CHECK_EVERY == 0:
            votes = torch.tensor([reason is not None], dtype=torch.int32)
            work = dist.all_reduce(votes, dist.ReduceOp.MAX, self.group, async_op=True)
            assert work is not None
            self.ballot = votes, work
        return None

    def _reason_here(self) -> str | None:
        if self.received is not None:
            return f"received {signal.Signals(self.received).name}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "reached the end of `max_train_minutes`"
        if self.launcher is not None and os.getppid() != self.launcher:
            return "its launcher is gone"
        return None
