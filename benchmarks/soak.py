#!/usr/bin/env python
"""A long run that is killed again and again: memory stays flat, nothing is left, and the end is exact.

python benchmarks/soak.py --minutes 120 --output benchmarks/results/soak
"""

import gc
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
import psutil
from faults.children import Child, Lost, adopt_orphans, end_descendants
from faults.compare import check_nothing_left, check_same
from faults.workshop import LOSSES, Workshop
from provenance import parser_of, provenance, write_report

WARM_UP = 0.3  # share of a process's life in which memory may grow
GROWTH = 0.05  # that memory may grow by over the rest, as a share of itself
CALIBRATION_STEPS = 60


@dataclass
class Watch:
    """Memory and open files of a child, once a second: rows of (seconds, bytes, files)."""

    rows: list[tuple[float, int, int]] = field(default_factory=list)

    def look(self, child: Child) -> None:
        """Add a row, if the child is there."""
        try:
            process = psutil.Process(child.pid)
            seconds = time.monotonic() - child.started
            self.rows.append((seconds, process.memory_info().rss, process.num_fds()))
        except psutil.Error:
            pass

    def growth(self, column: int) -> float:
        """The growth after the warm-up by the line of least squares, as a share of the mean."""
        table = np.array(self.rows[int(WARM_UP * len(self.rows)) :])
        seconds, values = table[:, 0], table[:, column]
        slope = np.polyfit(seconds, values, 1)[0]
        return float(slope * (seconds[-1] - seconds[0]) / values.mean())


def run(shop: Workshop, flags: list[str], loss: str, place: Path, until: float | None = None) -> tuple[int, Watch]:
    """Start the run of `place` or go on with it, until it ends or is killed after so many seconds: exit code, watch."""
    child, watch = Child(lambda: shop.train(loss, place / "out", *flags), place), Watch()
    while until is None or time.monotonic() - child.started < until:
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        watch.look(child)
        time.sleep(1.0 if until is None else max(0.0, min(1.0, until - (time.monotonic() - child.started))))
    ended = child.wait(0.0, kill=True)
    if ended.code not in (0, -9):
        raise Lost(f"exit code {ended.code}: {ended.output[-2000:]}")
    return ended.code, watch


def calibrate(shop: Workshop, loss: str, seconds: float, every: float) -> list[str]:
    """Flags of a run of so many seconds, with a checkpoint every so many."""
    place = shop.base / "calibration"
    start = time.monotonic()
    own = ["--max_train_steps", str(CALIBRATION_STEPS), "--checkpointing_steps", "1000", "--validation_steps", "1000"]
    run(shop, own, loss, place)
    pace = CALIBRATION_STEPS / (time.monotonic() - start)
    steps, saving = max(40, int(pace * seconds)), max(5, int(pace * every))
    return ["--max_train_steps", str(steps), "--checkpointing_steps", str(saving), "--logging_steps", "10",
            "--validation_steps", str(10 * saving)]  # fmt: skip


def soak(shop: Workshop, loss: str, minutes: float, every: float, random: Random) -> dict[str, Any]:
    """Run undisturbed and killed, half of the time each; what was measured.

    Raises:
        Lost: memory or open files grow, something is left, or the end is another.
    """
    seconds = 60 * minutes / 2
    flags = calibrate(shop, loss, seconds, every)
    whole, out = shop.base / "whole", shop.base / "killed"
    _, watch = run(shop, flags, loss, whole)
    kills, longest = 0, max(5.0, seconds / 12)
    while run(shop, flags, loss, out, until=random.uniform(2.0, 2 * longest))[0] != 0:
        kills += 1
    shop.check_alone()
    check_nothing_left(out)
    check_same(whole / "out", out / "out")
    grown = {"memory": watch.growth(1), "files": watch.growth(2)}
    if too_much := {name: value for name, value in grown.items() if value > GROWTH}:
        raise Lost(f"these grow: {too_much}")
    return {"flags": flags, "kills": kills, "growth": grown, "memory": [row[1] >> 20 for row in watch.rows[::10]]}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=120.0, help="half undisturbed, half killed [120]")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between checkpoints [20]")
    parser.add_argument("--loss", choices=list(LOSSES), default="act")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    adopt_orphans()
    gc.freeze()
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        found = soak(Workshop(base), options.loss, options.minutes, options.every, Random(options.seed))
    except Lost as error:
        end_descendants()
        print(f"LOST: {error}\n  {base}", file=sys.stderr)
        return 1
    shutil.rmtree(base)
    report = {**provenance(), "seed": options.seed, "loss": options.loss, **found}
    lines = [
        f"{report['kills']} kills of a run of {report['flags'][1]} steps; its end is bitwise that of the undisturbed "
        "one, and nothing is left.",
        f"Memory of the undisturbed one after the warm-up: {100 * report['growth']['memory']:+.2f} % from "
        f"{report['memory'][len(report['memory']) // 3]} MiB; open files: {100 * report['growth']['files']:+.2f} %.",
    ]
    write_report(options.output, report, f", seed {options.seed}.", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
