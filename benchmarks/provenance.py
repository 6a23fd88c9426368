"""Where a figure comes from: every result file begins with this."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, str]:
    """Command (paths by their last part), commit, hardware and library version of the running benchmark."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False, timeout=60)
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    cuda, program = torch.cuda.is_available(), Path(sys.argv[0]).resolve()
    program = program.relative_to(ROOT) if program.is_relative_to(ROOT) else Path("benchmarks") / program.name
    return {
        "command": " ".join(["python", program.as_posix(), *words]),
        "commit": commit.stdout.strip() if commit.returncode == 0 else os.environ.get("COMMIT", "unknown"),
        "hardware": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
    }


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the first line of a docstring and --output."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="path of the results, without ending")
    return parser


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    columns = list(columns)
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def write_report(output: Path | None, report: dict, words: str, lines: list[str], show: bool = True) -> None:
    """Print where the report comes from, the words and the lines; write OUTPUT.json and OUTPUT.md, if there is one."""
    origin = f"`{report['command']}`, commit {report['commit'][:10]}, {report['hardware']}, torch {report['torch']}"
    text = "\n".join([origin + words, "", *lines]).rstrip("\n")
    if show:
        print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(text + "\n")
