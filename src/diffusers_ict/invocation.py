"""How this program was started: the words that people typed, for usage lines, messages, hints and model cards."""

import os
import sys
from pathlib import Path
from typing import Any

from .files import portable

# The files of train_scripts/ that are not called as their command is.
SCRIPTS = {"train": "train_ict.py", "check": "check_repository.py"}
NOTEBOOK = "DIFFUSERS_ICT_NOTEBOOK"  # the variable with the process id of the notebook that started a program
LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch", "torch.distributed.run"}


def typed(command: str) -> str:
    """What was typed to start a command such as "train", up to its flags.

    "python train_scripts/train_ict.py" for a script, "python -m diffusers_ict train" for the module, and else, as in
    functions that are called from Python, "diffusers-ict train".
    """
    started = Path(sys.argv[0])
    if started.name == SCRIPTS.get(command, command.replace("-", "_") + ".py"):
        return f"python {sys.argv[0]}"
    module = started.parts[-2:] in (("diffusers_ict", "__main__.py"), ("commands", "main.py"))
    return f"{'python -m diffusers_ict' if module else 'diffusers-ict'} {command}"


def message_name(typed_words: str) -> str:
    """What messages of a program begin with: of a script the name of its file."""
    words = typed_words.split()
    return Path(words[-1]).name if words[-1].endswith(".py") else typed_words


def command_words(command: str) -> list[str]:
    """The words that repeat this start of a command, with those of its launcher, but no folder of this machine."""
    words = typed(command).split()
    if words[-1].endswith(".py") and Path(words[-1]).is_absolute():
        words[-1] = f"train_scripts/{Path(words[-1]).name}"
    launch = _launch_words()
    return [*launch, *words[1:]] if launch else words


def launcher() -> Any | None:
    """The process that started this one, if it is a launcher, as a `psutil.Process`: without it, nobody would know."""
    import psutil  # sampling needs no extra

    try:
        parent = psutil.Process(os.getppid())
        known = any(Path(word).name in LAUNCHERS for word in parent.cmdline()[:4])
    except psutil.Error:
        return None
    return parent if known else None


def followed() -> int | None:
    """The id of the process without which this one shall not go on, a launcher or a notebook, or None."""
    if os.environ.get(NOTEBOOK) == str(os.getppid()):
        return os.getppid()
    process = launcher()
    return None if process is None else process.pid


def _launch_words() -> list[str]:
    """The launcher's own words, as in "accelerate launch --num_processes 2"; none where there is no launcher."""
    process = launcher()
    if process is None:
        return []
    words = process.cmdline()
    start = next(number for number, word in enumerate(words) if Path(word).name in LAUNCHERS)
    ends = [number for number, word in enumerate(words) if number > start and word in (sys.argv[0], "-m", "--module")]
    if not ends:
        return []
    name = Path(words[start]).name
    return [*(["python", "-m"] if "." in name else []), name, *map(portable, words[start + 1 : ends[0]])]
