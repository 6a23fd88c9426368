"""The progress bar of everything that takes long, and a word on what has no bar."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm


def progress_bar(total: int, unit: str, *, shown: bool = True, **options: Any) -> tqdm:
    """A bar with an estimate of the remaining time, on standard error; the environment's TQDM_DISABLE hides it.

    Args:
        total: how many things there are to do; unit: what one is called.
        shown: whether this process shows it.
        options: more arguments of tqdm.
    """
    if not shown:  # tqdm heeds TQDM_DISABLE only where `disable` is not given
        options["disable"] = True
    interval = 1.0 if sys.stderr.isatty() else 15.0  # a log file is no terminal
    return tqdm(total=total, unit=unit, mininterval=interval, **options)


@contextmanager
def told(what: str, seconds: float = 2.0) -> Iterator[None]:
    """Say on standard error what a program is at, in a word or two, if it takes longer than some seconds."""
    timer = threading.Timer(seconds, print, [f"{what} ..."], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
