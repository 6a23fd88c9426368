"""What all command line programs share: their flags, exit codes and error messages."""

import argparse
import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ..credentials import scrubbed
from ..errors import TrainingDiverged, TrainingStopped, UserError, first_line, out_of_memory
from ..invocation import message_name, typed
from ..names import visible
from ..settings import ArgumentParser
from .console import guard_console

SETTING = re.compile(r"`(\w+)`")
LONG_WORD = re.compile(r"(\S{200})\S{200,}(\S{100})")  # such as a picture in base64, taken for the name of a file

# How long the other processes of a machine wait before they complain, too. Bad input is the same for all, and once the
# first one has ended, its launcher ends them, so that its sentence stands on the screen once.
PATIENCE_SECONDS = 10.0


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a program, as for `argparse.ArgumentParser.add_argument`."""
    return names, options


def program(command: str, about: str | None, *arguments: tuple[tuple[str, ...], dict[str, Any]]) -> Callable:
    """A decorator that makes main(argv=None), which returns the exit code, of a body that takes the parsed options.

    Args:
        command: as in `diffusers-ict COMMAND`; about: the docstring of the program, for --help.
    """

    def decorate(body: Callable[[argparse.Namespace], int | None]) -> Callable[..., int]:
        @functools.wraps(body)
        def main(argv: Sequence[str] | None = None) -> int:
            def run() -> int | None:
                parser = ArgumentParser(typed(command), about)
                for names, options in arguments:
                    parser.add_argument(*names, **options)
                return body(parser.parse_args(argv))

            return run_program(typed(command), run)

        return main

    return decorate


def as_flags(message: str) -> str:
    """A library's message with its settings as flags: `resolution` becomes --resolution."""
    return SETTING.sub(r"--\1", message)


def _shown(message: str) -> str:
    """A message as it is printed: in one line, with flags, without credentials, and harmless to terminals."""
    return visible(LONG_WORD.sub(r"\1…\2", scrubbed(as_flags(message))))


def run_program(name: str, body: Callable[[], int | None]) -> int:
    """Run a program's body and translate its errors into one sentence and an exit code; those of the console are none.

    Args:
        name: what was typed, with which messages begin.

    0 done, 1 training diverged, 2 bad input or a file that cannot be read or written, 3 training stopped early, 4 out
    of memory, 130 interrupted where there is nothing to save.
    Warnings are one line, without the place in the code that they come from.
    """
    guard_console()
    name = message_name(name)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: f"{name}: {_shown(str(message))}\n"
    try:
        return body() or 0
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(PATIENCE_SECONDS)
        code, sentence = 2, str(error)
    except ModuleNotFoundError as error:  # of an extra; our own modules are there
        code, sentence = 2, f"this command needs a package that is not installed: pip install {error.name}."
    except (MemoryError, RuntimeError, OSError) as error:
        code, sentence = _ended(error)
    except KeyboardInterrupt as error:
        code, sentence = 130, f"interrupted; {error}." if str(error) else "interrupted."
    finally:
        warnings.formatwarning = plain
    print(f"{name}: {_shown(sentence)}", file=sys.stderr)
    return code


def _ended(error: MemoryError | RuntimeError | OSError) -> tuple[int, str]:
    """(exit code, sentence) of an error that is no bad input; one that nobody foresaw is raised again."""
    if out_of_memory(error):
        which = "the GPU" if "CUDA" in str(error) else "this machine"
        return 4, (
            f"the memory of {which} is full ({first_line(error).partition('. ')[0].rstrip('.')}): lower the size of a "
            "batch (`train_batch_size` with `gradient_accumulation_steps`, or `batch_size`), `num_samples` or the "
            "`resolution`, or take a smaller network."
        )
    if isinstance(error, TrainingDiverged):
        return 1, f"{error}."
    if isinstance(error, TrainingStopped):
        return 3, f"{error}; the same command with --resume_from_checkpoint latest goes on."
    if not isinstance(error, OSError):
        raise error
    where = f" ({error.filename})" if error.filename else ""
    return 2, f"a file cannot be read or written: {error.strerror or error}{where}."
