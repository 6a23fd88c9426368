"""The progress bar of everything that takes long."""

import sys
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
