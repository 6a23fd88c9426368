#!/usr/bin/env python
"""What a step, a sample, the data and a start cost, each as a ratio to a floor or a peer measured in the same process.

    python benchmarks/bench.py --output benchmarks/results/bench

Everything is measured one after another: CPU seconds on a CPU, seconds between two waits for the device on a GPU.
The UNet is that of the ACT CIFAR-10 recipe by default, the images are random.
"""

import os

from bench_parts import bench_checkpoint, bench_data, bench_sampling, bench_start
from bench_step import METHODS, PRECISIONS, Row, bench_steps
from provenance import parser_of, provenance, table, write_report

PARTS = {
    "step": bench_steps,
    "sampling": bench_sampling,
    "data": bench_data,
    "checkpoint": bench_checkpoint,
    "start": bench_start,
}
FIGURES = {
    "seconds": "seconds",
    "images_per_second": "images/s",
    "against_floor": "against its floor",
    "against_ict": "cost against iCT",
    "against_diffusers": "speed against diffusers",
    "share_of_peak": "share of peak",
    "peak_gib": "peak GiB",
}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["fp32"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8])
    parser.add_argument("--sampling_batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--images", type=int, default=50_000, help="of the data part")
    parser.add_argument("--unet", default="act_cifar10_unet.json")
    parser.add_argument("--discriminator", default="act_cifar10_discriminator.json")
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--compiled", action="store_true", help="measure compiled steps, too")
    parser.add_argument("--warm", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--timed", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="calls of which the median counts")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    rows: list[Row] = []
    for part in options.parts:
        for row in PARTS[part](options):
            rows.append({"part": part, **row})
            print(*cells(rows[-1]), sep=" | ", flush=True)
            # After each row, so that nothing is lost when the machine goes.
            lines = table(["part", "what", "batch, precision", *FIGURES.values()], map(cells, rows))
            write_report(options.output, {**provenance(), "rows": rows}, ".", lines, show=False)


def cells(row: Row) -> list[str]:
    """A row of the table."""
    case = [str(row[key]) for key in ("batch", "precision") if row.get(key)]
    shown = ["" if row.get(key) is None else f"{row[key]:.3g}" for key in FIGURES]
    return [str(row["part"]), str(row["what"]), " ".join(case), *shown]


if __name__ == "__main__":
    main()
