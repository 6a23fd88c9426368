"""Where a figure comes from: every result file begins with this."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, str]:
    """Command (paths by their last part), commit, hardware and library version of the running benchmark."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    cuda = torch.cuda.is_available()
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "commit": commit.stdout.strip() if commit.returncode == 0 else os.environ.get("COMMIT", "unknown"),
        "hardware": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
    }


def heading(report: dict) -> str:
    """The same in one line of Markdown."""
    return f"`{report['command']}`, commit {report['commit'][:10]}, {report['hardware']}, torch {report['torch']}"


def write_report(output: Path, report: dict, text: str) -> None:
    """Write OUTPUT.json and OUTPUT.md, and print the text."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(text.rstrip("\n") + "\n")
    print(text)
