"""A console that never ends a program, whatever becomes of it: printing is not what a run is for.

A reader that went away (`| head -1`), a full disk behind standard output, a stream that was closed (`>&-`), and letters
that the console's encoding lacks raise errors in `print`, in progress bars, in warnings, and again when Python ends.
They all write through the same file, so that it is the place to stop them.
"""

import functools
import io
import os
import re
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..credentials import known_secrets, scrubbed
from ..names import visible


class Console(io.FileIO):
    """A file that takes what it cannot write, and forgets it."""

    def write(self, data: Any) -> int:
        """Write bytes; returns how many were taken, which after an error are all."""
        try:
            while (written := super().write(data)) is None:  # the other end does not block, and is slow
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes


# What terminals obey, but for the movements and colours of progress bars, and marks that turn the direction of writing.
OBEYED = re.compile(
    "\x1b(?!\\[[0-9;]*[ABKm])|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


@functools.cache
def _known(_hub_is_used: bool) -> re.Pattern:
    """The secrets of this process. The token of the Hub is among them from when the library that reads it is there."""
    return known_secrets()


class Screen(io.TextIOWrapper):
    """A stream of text without credentials and without orders to terminals, whoever prints them, tracebacks too."""

    def write(self, text: str, /) -> int:
        text = OBEYED.sub(lambda match: visible(match[0]), text)
        return super().write(scrubbed(text, _known("huggingface_hub" in sys.modules)))


def guard_console() -> None:
    """Let no error of standard output or standard error reach the program, and Ctrl-C show no traceback as Python ends.

    Streams and hooks that others put there stay.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: what is opened next would get its number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _guarded(number, getattr(sys, name)))
    for hook in ("excepthook", "unraisablehook"):
        if getattr(sys, hook) is getattr(sys, f"__{hook}__"):
            setattr(sys, hook, functools.partial(_unless_interrupted, getattr(sys, hook)))


def _unless_interrupted(show: Callable[..., None], *what: Any) -> None:
    """Show an error that nobody caught, but not Ctrl-C where a program has returned and Python itself ends.

    Args:
        what: as `sys.excepthook` and `sys.unraisablehook` get it.
    """
    if not issubclass(getattr(what[0], "exc_type", what[0]), KeyboardInterrupt):
        show(*what)


def _guarded(number: int, stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """A stream like the given one, that cannot fail; None is what Python makes of one that was closed."""
    if stream is None:
        return Screen(io.BufferedWriter(Console(os.devnull, "w")), "utf-8", "backslashreplace")
    with suppress(OSError, ValueError):
        stream.flush()
    return Screen(
        io.BufferedWriter(Console(number, "w", closefd=False)),
        stream.encoding,
        "backslashreplace",
        line_buffering=True,  # into a file or a pipe, too: who follows a long run there sees each line as it is printed
        write_through=stream.write_through,
    )
