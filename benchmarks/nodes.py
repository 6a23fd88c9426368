#!/usr/bin/env python
"""Two machines without a shared disk, in network namespaces: one is killed or unplugged; what the other does.

python benchmarks/nodes.py --output benchmarks/results/nodes
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.compare import check_same
from faults.workshop import Workshop
from provenance import parser_of, provenance, table, write_report
from two_machines import Machine, Machines, obstacle, wait_until

from diffusers_ict.training.checkpoint import find_corruption, list_checkpoints

STEPS = 40
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "as it begins": lambda out: (out / "recipe.yaml").exists(),
    "between checkpoints": lambda out: (out / "log.jsonl").exists() and (out / "log.jsonl").read_text().count("\n") > 6,
    "as a checkpoint is written": lambda out: bool(list_checkpoints(out)) and any(out.glob(".checkpoint-*")),
    "as the model is written": lambda out: (out / f"checkpoint-{STEPS}").exists(),
}
LIMIT = 60.0  # seconds within which the other machine has to end


def disturb(words: list[str], base: Path, moment: str, victim: int, how: str) -> dict[str, Any]:
    """Train on two machines until a moment, disturb one, wait for the other, and go on with the same command."""
    place = Path(tempfile.mkdtemp(dir=base))
    with Machines(place) as machines:
        first, other = machines[0], machines[1 - victim]
        processes = [machine.launch(words, place / f"{machine.name}.log") for machine in machines]
        wait_until(lambda: MOMENTS[moment](first.disk / "out"), 240, processes)
        if how == "unplugged":
            machines[victim].unplug()
            time.sleep(5.0)
            other.terminate()
        else:
            machines[victim].kill()
        began, limit = time.monotonic(), LIMIT + 30 * (how == "unplugged")  # a stuck step is given a minute
        row = {"moment": moment, "machine": machines[victim].name, "how": how, "ended": False}
        try:
            row["code"] = processes[1 - victim].wait(timeout=limit)
            row |= {"seconds": round(time.monotonic() - began, 1), "ended": True}
        except subprocess.TimeoutExpired:
            pass
        row["told"] = told(place / f"{other.name}.log")
        for machine in machines:
            machine.kill()
        for process in processes:
            process.wait(timeout=60)
        # Older ones than the three that are kept may be half deleted.
        row["torn"] = sum(find_corruption(saved) is not None for saved in list_checkpoints(first.disk / "out")[:3])
        machines[victim].plug_in()
        if how == "its disk is lost":
            shutil.rmtree(machines[victim].disk, ignore_errors=True)
        return {**row, **go_on(words, machines, place, base / "whole")}


def told(log: Path) -> str:
    """What the program said last, without its name."""
    said = re.findall(r"train_ict.py: (.*)", log.read_text())
    return said[-1] if said else ""


def go_on(words: list[str], machines: tuple[Machine, Machine], place: Path, whole: Path) -> dict[str, Any]:
    """The same command on both machines: from which step it went on, and whether it ended as the undisturbed run."""
    saved = list_checkpoints(machines[0].disk / "out")
    row = {"from_step": int(saved[0].name.rpartition("-")[2]) if saved else 0}
    train(words, machines, place)
    check_same(whole, machines[0].disk / "out")
    return {**row, "same": True}


def train(words: list[str], machines: tuple[Machine, Machine], place: Path) -> None:
    """Run a command on both machines to its end."""
    logs = [place / f"{machine.name}-whole.log" for machine in machines]
    processes = [machine.launch(words, log) for machine, log in zip(machines, logs, strict=True)]
    codes = [process.wait(timeout=300) for process in processes]
    if codes != [0, 0]:
        raise RuntimeError(f"codes {codes}: {[log.read_text()[-2000:] for log in logs]}")


def report(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows that there are."""
    columns = ["moment", "machine", "what", "the other ended after", "it said", "torn", "went on from step", "same end"]
    cells = [
        [
            *(row["moment"], row["machine"], row["how"]),
            f"{row['seconds']} s, code {row['code']}" if row["ended"] else "not",
            *(row["told"], str(row["torn"]), str(row["from_step"]), "bit for bit"),
        ]
        for row in rows
    ]
    words = (
        ". Where the wire is unplugged, the other machine gets SIGTERM five seconds later, and the time is from then."
    )
    write_report(output, {**provenance(), "rows": rows}, words, table(columns, cells))


def main() -> int:
    options = parser_of(__doc__).parse_args()
    if (reason := obstacle()) is not None:
        print(f"nodes.py: {reason}", file=sys.stderr)
        return 2
    base = Path(tempfile.mkdtemp(prefix="nodes-"))
    words = Workshop(base).command("ict", base / "out", "--max_train_steps", STEPS, "--checkpointing_steps", 5)
    place = words.index("--output_dir")
    del words[place : place + 2]
    with Machines(base) as machines:
        train(words, machines, base)
    (base / "first" / "out").rename(base / "whole")
    trials = [(moment, victim, "killed") for moment in MOMENTS for victim in (1, 0)]
    trials += [("between checkpoints", 1, "its disk is lost"), ("between checkpoints", 0, "unplugged")]
    trials += [("between checkpoints", 1, "unplugged")]
    rows = []
    for trial in trials:
        rows.append(disturb(words, base, *trial))
        report(options.output, rows)
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
