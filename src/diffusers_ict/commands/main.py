"""The installed program: `diffusers-ict COMMAND ...`, where each command is a module of this package."""

import importlib
import sys
from collections.abc import Sequence

from ..settings import nearest
from ..version import __version__
from .program import run_program

PROGRAMS = {
    "train": "train",
    "sample": "sample",
    "edit": "edit",
    "evaluate": "evaluate",
    "inspect": "inspect_model",
    "publish": "publish",
    "check": "check_repository",
    "convert": "convert",
    "ema": "ema",
    "export-onnx": "export_onnx",
    "demo": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first word names with the words after it; returns its exit code."""
    return run_program("diffusers-ict", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in PROGRAMS:
        return _module(name).main(words[1:])
    if name == "--version":
        print(__version__)
        return 0
    if name in ("--help", "-h", "help"):
        print(_overview())
        return 0
    near = nearest(name, PROGRAMS)
    instead = f"did you mean {near}" if near else "diffusers-ict --help lists the commands"
    print(f"diffusers-ict: there is no command {name}; {instead}.", file=sys.stderr)
    return 2


def _module(name: str):
    return importlib.import_module(f".{PROGRAMS[name]}", __package__)


def _overview() -> str:
    """Each command with the first line of its help."""
    about = {name: (_module(name).__doc__ or "").splitlines()[0].partition(":")[0].rstrip(".") for name in PROGRAMS}
    lines = [f"  {name:<12} {text}" for name, text in about.items()]
    return "\n".join(["usage: diffusers-ict COMMAND ...", "", *lines, "", "COMMAND --help lists the flags of each."])


if __name__ == "__main__":
    sys.exit(main())
