#!/usr/bin/env python
"""What a step, a sample and a start cost, each as a ratio to a floor or a peer measured in the same process.

    python benchmarks/bench.py --output benchmarks/results/bench

Everything is measured one after another: CPU seconds on a CPU, seconds between two waits for the device on a GPU.
The UNet is that of the ACT CIFAR-10 recipe by default, the images are random.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import diffusers_step
import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
from provenance import heading, provenance
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.data.images import Images
from diffusers_ict.training import checkpoint, train
from diffusers_ict.training.interruption import Interruption
from diffusers_ict.training.log import Metrics
from diffusers_ict.training.recipe import Recipe, find_shipped
from diffusers_ict.training.run import open_run
from diffusers_ict.training.unets import read_config

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
METHODS = {
    "iCT": {"loss": "ict"},
    "CT": {"loss": "ct"},
    "ACT on CT": {"loss": "act", "consistency": "ct"},
    "ACT on iCT": {"loss": "act", "consistency": "ict"},
}
PRECISIONS = {"fp32": {}, "tf32": {"allow_tf32": True}, "bf16": {"mixed_precision": "bf16"}}
Row = dict[str, float | str | None]


def now() -> float:
    """CPU seconds of this process, or seconds once the device has finished."""
    if not CUDA:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The median time of a call, after one that is not counted."""
    function()
    found = []
    for _ in range(repeats):
        start = now()
        function()
        found.append(now() - start)
    return statistics.median(found)


class TimingOver(Exception):
    """Ends a run once its steps are timed."""


def step_seconds(recipe: Recipe, images: Images, warm: int, timed: int) -> tuple[float, float]:
    """(mean time of a step of the training loop itself, after some that warm up; peak memory in GiB)."""
    stamps: list[float] = []

    def count(self: Metrics, count: int) -> None:
        stamps.append(now() if len(stamps) + 1 in (warm, warm + timed) else 0.0)
        if len(stamps) == warm and CUDA:
            torch.cuda.reset_peak_memory_stats()
        if len(stamps) == warm + timed:
            raise TimingOver

    plain, Metrics.count_step = Metrics.count_step, count  # type: ignore[method-assign]
    try:
        with open_run(recipe, images=images) as run:
            train._train_steps(run, Interruption(run.accelerator))
    except TimingOver:
        pass
    finally:
        Metrics.count_step = plain  # type: ignore[method-assign]
    peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    return (stamps[-1] - stamps[warm - 1]) / timed, peak


def matrix_peak(precision: str) -> float:
    """FLOP a second of a large matrix product, measured here."""
    size = 8192 if CUDA else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=kind)
    return 2 * size**3 / seconds(lambda: a @ b, 10)


def bench_steps(options: argparse.Namespace) -> Iterator[Row]:
    """Each method at each batch and precision, against four bare forward passes and against diffusers' own step."""
    config = {**read_config(options.unet), "dropout": 0.0}
    for batch, precision in product(options.batch_sizes, options.precisions):
        unet = UNet2DModel.from_config(config).to(DEVICE).eval()
        x, level = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.full((batch,), 1000.0, device=DEVICE)
        autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16")
        peak = matrix_peak(precision)

        def forward(unet=unet, x=x, level=level, autocast=autocast) -> None:
            with torch.no_grad(), autocast:
                unet(x, level, return_dict=False)

        with FlopCounterMode(display=False) as counter:
            forward()
        flops = 4 * counter.get_total_flops()
        floor = 4 * seconds(forward, options.repeats)
        peer = seconds(diffusers_step.make(config, batch, DEVICE, autocast, options.dropout), options.repeats)
        case = {"batch": batch, "precision": precision}
        yield {**case, "what": "four bare forward passes", "seconds": floor, "share_of_peak": flops / floor / peak}
        yield {**case, "what": "diffusers' step", "seconds": peer, "against_floor": peer / floor}
        del unet
        for method, compiled in product(options.methods, (False, True) if options.compiled else (False,)):
            taken, memory = step_seconds(
                *run_of(options, method, precision, batch, compiled), options.warm, options.timed
            )
            yield {
                **case,
                "what": method + (", compiled" if compiled else ""),
                "seconds": taken,
                "images_per_second": batch / taken,
                "against_floor": taken / floor,
                "against_diffusers": peer / taken,
                "share_of_peak": flops / taken / peak if METHODS[method]["loss"] != "act" else None,
                "peak_gib": memory or None,
            }


def run_of(
    options: argparse.Namespace, method: str, precision: str, batch: int, compiled: bool
) -> tuple[Recipe, Images]:
    """A run of so many steps on random images that never saves."""
    steps = options.warm + options.timed + 1
    act = {"discriminator_config_name_or_path": options.discriminator} if METHODS[method]["loss"] == "act" else {}
    recipe = Recipe(
        **METHODS[method], **PRECISIONS[precision], **act,
        model_config_name_or_path=str(find_shipped(options.unet)), train_batch_size=batch, dropout=options.dropout,
        max_train_steps=max(steps, 16), checkpointing_steps=10**6, validation_steps=10**6, logging_steps=10**6,
        torch_compile=compiled, random_flip=True, output_dir=tempfile.mkdtemp(prefix="bench-"),
    )  # fmt: skip
    pixels = torch.randint(0, 256, (max(4 * batch, 1024), 3, 32, 32), dtype=torch.uint8)
    return recipe, Images(pixels)


def bench_sampling(options: argparse.Namespace) -> Iterator[Row]:
    """The pipeline against the bare UNet and against stock diffusers."""
    unet = UNet2DModel.from_config(read_config(options.unet)).to(DEVICE).eval()
    scheduler = ICTScheduler()
    pipelines = {"pipeline": ConsistencyPipeline(unet, scheduler)}
    with tempfile.TemporaryDirectory() as folder:
        pipelines["pipeline"].scheduler.save_pretrained(folder)
        pipelines["stock pipeline"] = ConsistencyModelPipeline(unet, diffusers_step.stock_scheduler(folder))
    for batch, steps in product(options.sampling_batches, (1, 2)):
        x, level = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.full((batch,), 1000.0, device=DEVICE)

        def bare(x=x, level=level, steps=steps) -> None:
            with torch.no_grad():
                for _ in range(steps):
                    unet(x, level, return_dict=False)

        floor = seconds(bare, options.repeats)
        for name, pipeline in pipelines.items():
            pipeline.set_progress_bar_config(disable=True)

            def draw(pipeline=pipeline, batch=batch, steps=steps) -> None:
                generator = torch.Generator(DEVICE).manual_seed(0)
                pipeline(batch, num_inference_steps=steps, generator=generator, output_type="pt")

            taken = seconds(draw, options.repeats)
            yield {"what": f"{name}, {steps} steps", "batch": batch, "seconds": taken, "against_floor": taken / floor}


def bench_checkpoint(options: argparse.Namespace) -> Iterator[Row]:
    """How long a checkpoint stops a run, against copying its bytes to the same disk."""
    recipe, images = run_of(options, "iCT", "fp32", options.batch_sizes[0], False)
    with open_run(recipe, images=images) as run, tempfile.TemporaryDirectory() as folder:
        tensors = run.state._tensors()
        size = sum(t.nbytes for part in tensors.values() for t in part.values())
        data = os.urandom(1 << 24)

        def write() -> None:
            with (Path(folder) / "bytes").open("wb") as file:
                for _ in range(size // len(data) + 1):
                    file.write(data)
                os.fsync(file.fileno())

        start = time.perf_counter()
        write()
        floor = time.perf_counter() - start
        start = time.perf_counter()
        checkpoint.save(Path(folder), 1, checkpoint.Checkpoint({"step": 1}, tensors))
        taken = time.perf_counter() - start
    yield {"what": f"checkpoint of {size / 2**20:.0f} MiB", "seconds": taken, "against_floor": taken / floor}


def bench_start(options: argparse.Namespace) -> Iterator[Row]:
    """Fresh processes: the help and the import, against the interpreter and against diffusers' own import."""
    peers = {
        "--help": ("-m diffusers_ict.commands.train --help".split(), ["-c", "pass"]),
        "import diffusers_ict, UNet2DModel, ConsistencyPipeline": (
            ["-c", "from diffusers import UNet2DModel; from diffusers_ict import ConsistencyPipeline, ICTScheduler"],
            ["-c", "from diffusers import UNet2DModel, ConsistencyModelPipeline, CMStochasticIterativeScheduler"],
        ),
    }
    for name, (ours, theirs) in peers.items():
        ours_taken, theirs_taken = (
            statistics.median(process_seconds([sys.executable, *words]) for _ in range(3)) for words in (ours, theirs)
        )
        yield {"what": name, "seconds": ours_taken, "against_floor": ours_taken / theirs_taken}


def process_seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


PARTS = {"step": bench_steps, "sampling": bench_sampling, "checkpoint": bench_checkpoint, "start": bench_start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="path of the results, without ending")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["fp32"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8])
    parser.add_argument("--sampling_batches", nargs="+", type=int, default=[1, 8])
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
            print(line(rows[-1]), flush=True)
            write(options.output, rows)


def line(row: Row) -> str:
    """A row of the table."""
    case = [str(row[key]) for key in ("batch", "precision") if row.get(key)]
    figures = ("seconds", "images_per_second", "against_floor", "against_diffusers", "share_of_peak", "peak_gib")
    shown = ["" if row.get(key) is None else f"{row[key]:.3g}" for key in figures]
    return "| " + " | ".join([str(row["part"]), str(row["what"]), " ".join(case), *shown]) + " |"


def write(output: Path, rows: list[Row]) -> None:
    """The results so far, so that nothing is lost when the machine goes."""
    report = {**provenance(), "rows": rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    columns = (
        "part|what|batch, precision|seconds|images/s|against its floor|speed against diffusers|share of peak|peak GiB"
    )
    head = "| " + columns.replace("|", " | ") + " |"
    text = [heading(report) + ".", "", head, "|" + "---|" * 9, *map(line, rows)]
    output.with_suffix(".md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
