"""Exit codes and error messages of all command line programs."""

import re
import sys
import warnings
from collections.abc import Callable

from ..errors import TrainingDiverged, UserError

SETTING = re.compile(r"`(\w+)`")


def as_flags(message: str) -> str:
    """A library's message with its settings as flags: `resolution` becomes --resolution."""
    return SETTING.sub(r"--\1", message)


def run_program(name: str, body: Callable[[], int | None]) -> int:
    """Run a program's body and translate its errors: exit code 0 done, 1 training diverged, 2 bad input.

    Warnings are one line, without the place in the code that they come from.
    """
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: f"{name}: {as_flags(str(message))}\n"
    try:
        return body() or 0
    except UserError as error:
        print(f"{name}: {as_flags(str(error))}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        # The line of an open progress bar ends first.
        print(f"\n{name}: {error}; the last good checkpoint is kept.", file=sys.stderr)
        return 1
    finally:
        warnings.formatwarning = plain
