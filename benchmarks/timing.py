"""Clocks of the benchmarks, and the peak that arithmetic is compared with."""

import statistics
import subprocess
import time
from collections.abc import Callable

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def now() -> float:
    """CPU seconds of this process, or seconds once the device has finished."""
    if not CUDA:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def once(function: Callable[[], object], clock: Callable[[], float] = now) -> float:
    """The time of one call."""
    start = clock()
    function()
    return clock() - start


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The median time of a call, after one that is not counted."""
    function()
    return statistics.median(once(function) for _ in range(repeats))


def in_turns(functions: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """The times of calls of each, in turns, so that what slows the machine down slows all of them down."""
    for function in functions:
        function()
    return [list(times) for times in zip(*([once(function) for function in functions] for _ in range(repeats)))]


def median_ratio(times: list[float], floors: list[float]) -> float:
    """The median ratio of times to those that were taken at about the same moment."""
    return statistics.median(own / floor for own, floor in zip(times, floors, strict=True))


def process_seconds(command: list[str]) -> float:
    """How long a process takes from its start to its end."""
    return once(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600), time.perf_counter)


def matrix_peak(precision: str) -> float:
    """FLOP a second of a large matrix product, measured here."""
    size = 8192 if CUDA else 1024
    kind = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    # Runs in fp32 use TF32 in convolutions, as PyTorch does by default, so that is their peak, too.
    torch.backends.cuda.matmul.allow_tf32 = not precision.startswith("bf16")
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=kind)
    return 2 * size**3 / seconds(lambda: a @ b, 10)
