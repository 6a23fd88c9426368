"""Several processes: an equal global batch, resumes across their number, and one that is killed. Over 127.0.0.1."""

import functools
import itertools
import os
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random, SystemRandom

from diffusers_ict.training import checkpoint
from diffusers_ict.training.log import Metrics

from .children import Child, Lost, at_changes, kill_at
from .compare import check_close, check_nothing_left, check_same
from .workshop import LOSSES, Fault, Workshop

# Without dropout and for a few steps, so that only rounding differs.
SHORT = ["--dropout", 0, "--max_train_steps", 6, "--checkpointing_steps", 3]
COUNTS = (1, 2, 4)
PAIRS = list(itertools.permutations(COUNTS, 2))


def free_port() -> int:
    """A port of 127.0.0.1 that is free, below those that connections of other programs are given meanwhile."""
    while True:
        with suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", SystemRandom().randrange(16_000, 32_000)))
            return tried.getsockname()[1]


def group(count: int, body: Callable[[], int], place: Path) -> list[Child]:
    """Children that run `body` and know of each other, as torchrun starts them."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(count)]
    return [Child(body, place, {} if count == 1 else rank) for rank in ranks]


def train(shop: Workshop, count: int, loss: str, place: Path, *more: object) -> None:
    """Train on `count` processes to the end, with a global batch of 4.

    Raises:
        Lost: it does not end well.
    """
    own = [*SHORT, "--train_batch_size", 4 // count, *more]
    for child in group(count, lambda: shop.train(loss, place / "out", *own), place):
        child.wait().check(0)
    shop.check_alone()
    check_nothing_left(place)


@functools.cache
def _whole(shop: Workshop, count: int, loss: str) -> Path:
    """The undisturbed run on `count` processes."""
    place = shop.base / "several" / f"{loss}-{count}"
    shutil.rmtree(place, ignore_errors=True)
    train(shop, count, loss, place)
    return place / "out"


def equal_batch(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Train on 2 or 4 processes with the global batch of one."""
    loss, count = list(LOSSES)[number // 2 % len(LOSSES)], COUNTS[1 + number % 2]
    train(shop, count, loss, place)
    check_close(_whole(shop, 1, loss), place / "out")
    return 1


def resumed(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Resume a run on another number of processes."""
    loss, (before, after) = list(LOSSES)[number // 6 % len(LOSSES)], PAIRS[number % 6]
    shutil.copytree(_whole(shop, before, loss), place / "out")
    shutil.rmtree(checkpoint.list_checkpoints(place / "out")[0])
    train(shop, after, loss, place)
    check_close(_whole(shop, 1, loss), place / "out")
    return 1


def one_killed(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill one of two processes: the other ends, too, and the run goes on to the same end."""
    loss, killed = list(LOSSES)[number % len(LOSSES)], random.randrange(2)
    whole = _whole(shop, 2, loss)
    at = random.randrange(4, 50)

    def body() -> int:
        if int(os.environ["RANK"]) == killed:
            at_changes(place / "out", kill_at(at)) if killed == 0 else _kill_at_step(at % 6)
        return shop.train(loss, place / "out", *SHORT, "--train_batch_size", 2)

    children = group(2, body, place)
    codes = [child.wait().code for child in children]
    if codes[killed] != -signal.SIGKILL:
        raise Lost(f"exit codes {codes}, and {killed} was to be killed")
    train(shop, 2, loss, place)
    check_same(whole, place / "out")
    return 1


def _kill_at_step(step: int) -> None:
    """End this very process by SIGKILL when so many optimizer steps are done."""
    count, done = Metrics.count_step, iter(range(1000))

    def counting(self: Metrics, images: int) -> None:
        if next(done) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count(self, images)

    Metrics.count_step = counting  # type: ignore[method-assign]


FAULTS = [
    Fault("2 and 4 processes with the batch of 1", 6, equal_batch),
    Fault("resume on another number of processes", 18, resumed),
    Fault("SIGKILL to one of 2 processes", 12, one_killed),
]
