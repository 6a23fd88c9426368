#!/usr/bin/env python
"""The demo over several seeds: what `make demo` may be expected to print.

python benchmarks/demo_seeds.py --output benchmarks/results/demo
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import ROOT, parser_of, provenance, table, write_report

COLUMNS = {
    "recognised_1_all": "recognised, 1 step",
    "recognised_2_all": "2 steps",
    "frechet_1": "Frechet, 1 step",
    "frechet_2": "2 steps",
    "frechet_halves": "halves of the data",
    "classifier_held_out": "classifier, held out",
    "train_seconds": "seconds of training",
}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "examples/demo_digits.py"), "--seed", str(seed)]
            subprocess.run([*command, "--output_dir", f"{folder}/run"], check=True, timeout=7200)
            rows.append(json.loads(Path(folder, "run", "demo.json").read_text()))
    report = {**provenance(), "rows": rows}
    cells = ([str(row["seed"]), *(f"{row[key]:.4g}" for key in COLUMNS)] for row in rows)
    lines = table(["seed", *COLUMNS.values()], cells)
    write_report(options.output, report, f", {rows[0]['samples']} samples.", lines)


if __name__ == "__main__":
    main()
