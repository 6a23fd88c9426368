#!/usr/bin/env python
"""Runs that are killed, starved and misled: what survives, and what is lost. See docs/reliability.md.

python benchmarks/torture.py --output benchmarks/results/torture

Faults of lost disks wait most of the time, and can run beside the others: --skip "lost disk", and --only "lost disk".
"""

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

# One thread for whatever is imported from here on: sums in another order are other sums, and threads survive no fork.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from faults import damage, decoded, full_disk, hub, kills, several, signals, vanishing
from faults.children import Lost, adopt_orphans, end_descendants
from faults.workshop import Fault, Workshop
from provenance import provenance, table, write_report

KINDS = (kills, hub, vanishing, damage, decoded, full_disk, signals, several)
FAULTS = [fault for kind in KINDS for fault in kind.FAULTS]


def torture(fault: Fault, shop: Workshop, seed: int, numbers: range) -> dict[str, Any]:
    """Inject a fault in trials of these numbers: a row of the table. What was lost is printed, and its folder stays."""
    injected, lost, start = 0, [], time.monotonic()
    for number in numbers:
        place = shop.base / f"{fault.name}-{number}".replace(" ", "-")
        place.mkdir()
        try:
            injected += fault.trial(shop, place, number, Random(f"{seed}/{fault.name}/{number}"))
            shutil.rmtree(place)
        except Exception as error:
            end_descendants()
            told = str(error) if isinstance(error, Lost) else traceback.format_exc()
            lost.append({"trial": number, "reason": told.replace(str(shop.base), "")})
            print(f"LOST: {told}\n  {place}\n  again: --seed {seed} --only '{fault.name}' --trial {number}", flush=True)
    row = {"fault": fault.name, "trials": len(numbers), "injected": injected, "survived": len(numbers) - len(lost)}
    return {**row, "lost": len(lost), "losses": lost, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of the trials of each fault; at least one, but for faults that start interpreters",
    )
    parser.add_argument("--only", default="", help="part of the names of faults")
    parser.add_argument("--skip", help="part of the names of faults that are left out")
    parser.add_argument("--trial", type=int, help="one number, to repeat what was lost")
    parser.add_argument("--output", type=Path, help="path of the results, without ending")
    options = parser.parse_args()
    adopt_orphans()
    gc.freeze()  # children share what has been imported
    base, rows = Path(tempfile.mkdtemp(prefix="torture-")), []
    shop = Workshop(base)
    for fault in FAULTS:
        if options.only in fault.name and (options.skip is None or options.skip not in fault.name):
            numbers = range(max(fault.least, round(options.share * fault.times)))
            if options.trial is not None:
                numbers = range(options.trial, options.trial + 1)
            if not numbers:
                continue
            rows.append(torture(fault, shop, options.seed, numbers))
            print("{fault}: {injected} injected, {lost} of {trials} lost, {seconds} s".format(**rows[-1]), flush=True)
    report = {**provenance(), "seed": options.seed, "rows": rows}
    counts = ("injected", "trials", "survived", "lost")
    sums = {key: sum(row[key] for row in rows) for key in counts}
    cells = [[row["fault"], *(str(row[key]) for key in counts)] for row in [*rows, {"fault": "**all**", **sums}]]
    lines = table(["fault", "injected", "runs", "survived", "lost"], cells)
    write_report(options.output, report, f", seed {options.seed}.", lines)
    if not sums["lost"]:
        shutil.rmtree(base)
    return 1 if sums["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
