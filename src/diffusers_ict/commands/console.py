"""A console that never ends a program, whatever becomes of it: printing is not what a run is for.

A reader that went away (`| head -1`), a full disk behind standard output, a stream that was closed (`>&-`), and letters
that the console's encoding lacks raise errors in `print`, in progress bars, in warnings, and again when Python ends.
They all write through the same file, so that it is the place to stop them.
"""

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

from ..credentials import scrubbed


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


class Screen(io.TextIOWrapper):
    """A stream of text that shows no credentials, whichever library prints them, nor in tracebacks."""

    def write(self, text: str, /) -> int:
        return super().write(scrubbed(text))


def guard_console() -> None:
    """Let no error of standard output or standard error reach the program. Streams that others put there stay."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: what is opened next would get its number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _guarded(number, getattr(sys, name)))


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
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
