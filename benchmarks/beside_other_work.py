#!/usr/bin/env python
"""Speed of the training of `make demo` beside busy processes, by what threads do while they wait for others.

    python benchmarks/beside_other_work.py --output benchmarks/results/beside_other_work

Each setting of the environment trains a number of steps alone, beside one busy process, and beside six. A run that
takes longer than --limit is stopped, and counted as far as it came. The machine has to be quiet otherwise.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compare import write_digits
from provenance import ROOT, parser_of, provenance, table, write_report

from diffusers_ict.training.log import read_log

SETTINGS = {  # the first is libgomp's own default, which programs do not touch where it is set
    "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=4000": {"GOMP_SPINCOUNT": "4000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
OTHERS = (0, 1, 6)  # busy processes


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--others", nargs="+", type=int, default=list(OTHERS), help="numbers of busy processes")
    parser.add_argument("--steps", type=int, default=200, help="of a run")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts, in turns")
    options = parser.parse_args()
    rates: dict[str, dict[int, list[float]]] = {name: {n: [] for n in options.others} for name in options.settings}
    with tempfile.TemporaryDirectory() as temporary:
        data = write_digits(Path(temporary) / "digits.npz")
        for _ in range(options.repeats):
            for others in options.others:
                for name in options.settings:
                    with busy(others):
                        rates[name][others].append(steps_a_second(SETTINGS[name], data, options.steps, options.limit))
                    print(f"{name} beside {others}: {rates[name][others][-1]:.3g} steps a second", flush=True)
    report = {**provenance(), "steps_a_second": rates}
    write_report(options.output, report, ".", lines_of(rates))


def lines_of(rates: dict[str, dict[int, list[float]]]) -> list[str]:
    """Median steps a second, and how much slower than the first setting alone."""
    medians = {name: {n: statistics.median(own) for n, own in row.items()} for name, row in rates.items()}
    columns = list(next(iter(medians.values())))
    fastest = medians[next(iter(medians))][columns[0]]
    words = ["alone" if n == 0 else f"beside {n}" for n in columns]
    cells = ([name, *(f"{own:.2f} ({fastest / own:.1f}x)" for own in row.values())] for name, row in medians.items())
    return table(["environment", *words], cells)


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that compute without end."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=60)


def steps_a_second(setting: dict[str, str], data: Path, steps: int, limit: float) -> float:
    """From the log of a training, but for its first line: until then everything warms up."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | setting
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "digits", "--dataset_name", data, "--output_dir", folder, "--max_train_steps", steps]
        words += ["--max_train_minutes", limit / 60, "--logging_steps", 5, "--num_validation_images", 1]
        words += ["--validation_steps", 10**6, "--checkpointing_steps", 10**6]
        command = map(str, [sys.executable, ROOT / "train_scripts" / "train_ict.py", *words])
        subprocess.run(
            list(command),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=limit + 600,
        )
        first, *_, last = read_log(Path(folder) / "log.jsonl")
    return (last["step"] - first["step"]) / (last["train_seconds"] - first["train_seconds"])


if __name__ == "__main__":
    main()
