"""The installed program: `diffusers-ict train|evaluate|publish|check|convert|ema|export-onnx|demo ...`."""

import importlib
import sys
from collections.abc import Sequence

from ..version import __version__

PROGRAMS = {
    "train": "train",
    "evaluate": "evaluate",
    "publish": "publish",
    "check": "check_repository",
    "convert": "convert",
    "ema": "ema",
    "export-onnx": "export_onnx",
    "demo": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first word names with the words after it; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in PROGRAMS:
        return importlib.import_module(f".{PROGRAMS[name]}", __package__).main(words[1:])
    if name == "--version":
        print(__version__)
        return 0
    usage = "usage: diffusers-ict {" + ",".join(PROGRAMS) + "} ...   (each has --help)"
    if name in ("--help", "-h"):
        print(usage)
        return 0
    print(f"diffusers-ict: the first word must be one of {', '.join(PROGRAMS)}, got {name}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
