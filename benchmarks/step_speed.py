#!/usr/bin/env python
"""Images per second and peak memory of one training step: each method, in fp32 and bf16, eager and compiled.

    python benchmarks/step_speed.py --output benchmarks/results/speed --data cifar10.npz -- --train_batch_size 80

Runs train_scripts/train_ict.py itself. Every configuration warms up first; the timed steps of one never overlap
another's. Ratios are against eager fp32 of the same method in the same run.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from itertools import product
from pathlib import Path

from provenance import heading, provenance

METHODS = {
    "iCT": ["--loss", "ict"],
    "CT": ["--loss", "ct"],
    "ACT on CT": ["--loss", "act", "--consistency", "ct", "--augment"],
    "ACT on iCT": ["--loss", "act", "--consistency", "ict", "--augment"],
}


class TimingOver(Exception):
    """Ends a run once its steps are timed."""


def measure(name: tuple[str, str, bool], flags: list[str], warm: int, timed: int, ready, turn, results) -> None:
    """Train in this process, and time the steps after the warm-up when everybody is warm and it is our turn."""
    import torch

    from diffusers_ict.training import run
    from diffusers_ict.training.recipe import parse
    from diffusers_ict.training.train import train

    cuda = torch.cuda.is_available()
    result: dict = {}
    arrived = False

    class TimedMetrics(run.Metrics):
        """Its entries fall on the end of the warm-up and on the end of the timed steps, and wait for the device."""

        def write(self, *args):
            nonlocal arrived
            super().write(*args)
            if not arrived:
                arrived = True
                ready.wait()
                turn.acquire()
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                result["start"] = time.perf_counter()
                return
            result["seconds"] = time.perf_counter() - result.pop("start")
            result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
            turn.release()
            raise TimingOver

    run.Metrics = TimedMetrics
    method, precision, compiled = name
    own = ["--mixed_precision", precision, "--torch_compile" if compiled else "--no-torch_compile"]
    own += ["--logging_steps", str(warm), "--max_train_steps", str(warm + timed)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            flags = [*METHODS[method], *flags, *own, "--output_dir", folder + "/run"]
            train(parse(flags, "step_speed.py", ""))
        except TimingOver:
            pass
        except Exception as error:  # the others must not wait for this one
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
            if not arrived:
                ready.wait()
    results.put((name, result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what train_ict.py takes as --dataset_name")
    parser.add_argument("--output", type=Path, required=True, help="path of the results, without ending")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", choices=["no", "bf16", "fp16"], default=["no", "bf16"])
    parser.add_argument("--eager_only", action="store_true")
    parser.add_argument(
        "--warm_steps", type=int, default=20, help="at least 16, so that a gradient penalty is among them"
    )
    parser.add_argument("--timed_steps", type=int, default=48)
    parser.add_argument("train_flags", nargs="*", help="after --: flags of train_ict.py for every method")
    options = parser.parse_args()
    flags = ["--dataset_name", options.data, *options.train_flags]
    batch = int(flags[flags.index("--train_batch_size") + 1]) if "--train_batch_size" in flags else 64
    names = list(product(options.methods, options.precisions, [False] if options.eager_only else [False, True]))
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "4"}

    spawn = multiprocessing.get_context("spawn")
    ready, turn, results = spawn.Barrier(len(names)), spawn.Lock(), spawn.Queue()
    arguments = (flags, options.warm_steps, options.timed_steps, ready, turn, results)
    processes = [spawn.Process(target=measure, args=(name, *arguments)) for name in names]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=580) for _ in names)
    for process in processes:
        process.join()
    write(options, batch, [(name, found[name]) for name in names])


def write(options: argparse.Namespace, batch: int, found: list[tuple[tuple[str, str, bool], dict]]) -> None:
    rows = []
    for (method, precision, compiled), result in found:
        row = {"method": method, "precision": {"no": "fp32"}.get(precision, precision), "compiled": compiled, **result}
        if "seconds" in result:
            row["images_per_second"] = options.timed_steps * batch / result["seconds"]
        rows.append(row)
    base = {
        row["method"]: row.get("images_per_second")
        for row in rows
        if row["precision"] == "fp32" and not row["compiled"]
    }
    lines = ["| step | precision | | images/s | against eager fp32 | peak GiB |", "|" + "---|" * 6]
    for row in rows:
        start = f"| {row['method']} | {row['precision']} | {'compiled' if row['compiled'] else 'eager'} |"
        if "error" in row:
            lines.append(f"{start} {row['error']} | | |")
            continue
        ratio = f"{row['images_per_second'] / base[row['method']]:.2f}" if base.get(row["method"]) else ""
        peak = f"{row['peak_gib']:.2f}" if row["peak_gib"] else ""
        lines.append(f"{start} {row['images_per_second']:.0f} | {ratio} | {peak} |")
    report = {
        **provenance(),
        "batch_size": batch,
        "timed_steps": options.timed_steps,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    text = heading(report) + ".\n\n"
    options.output.with_suffix(".md").write_text(text + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
