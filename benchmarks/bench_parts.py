"""The parts of bench.py about samples, data, checkpoints and starts."""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench_step import Row, noise_for, run_of
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from diffusers import ConsistencyModelPipeline, UNet2DModel
from PIL import Image
from timing import DEVICE, in_turns, median_ratio, once, process_seconds

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.data.load import load_images
from diffusers_ict.training import checkpoint
from diffusers_ict.training.opening import open_run
from diffusers_ict.training.unets import read_config


def bench_sampling(options: argparse.Namespace) -> Iterator[Row]:
    """The pipeline and that of stock diffusers against the bare UNet, in turns."""
    unet = UNet2DModel.from_config(read_config(options.unet)).to(DEVICE).eval()
    scheduler = ICTScheduler()
    stock = ConsistencyModelPipeline(unet, scheduler.to_stock())
    pipelines = {"pipeline": ConsistencyPipeline(unet, scheduler), "stock pipeline": stock}
    for batch in options.sampling_batches:
        for steps in (1, 2):
            x, level = noise_for(unet, batch)

            def bare(x=x, level=level, steps=steps) -> None:
                with torch.no_grad():
                    for _ in range(steps):
                        unet(x, level, return_dict=False)

            def draw(name: str, batch=batch, steps=steps) -> None:
                generator = torch.Generator(DEVICE).manual_seed(0)
                pipelines[name](batch, num_inference_steps=steps, generator=generator, output_type="pt")

            for pipeline in pipelines.values():
                pipeline.set_progress_bar_config(disable=True)
            calls = [bare, *(lambda name=name: draw(name) for name in pipelines)]
            floors, *taken = in_turns(calls, 2 * options.repeats if batch > 1 else 12 * options.repeats)
            for name, own in zip(pipelines, taken):
                what, ratio = f"{name}, {steps} step{'s' if steps > 1 else ''}", median_ratio(own, floors)
                yield {"what": what, "batch": batch, "seconds": statistics.median(own), "against_floor": ratio}


def bench_data(options: argparse.Namespace) -> Iterator[Row]:
    """Images from parquet, decoded on all cores, and again from the cache; against Pillow's decoding on one core."""
    rng, size = np.random.default_rng(0), 32
    smooth = rng.integers(0, 256, (1000, 4, 4, 3)).astype(np.uint8)
    pictures = [_png(np.asarray(Image.fromarray(own).resize((size, size))), rng) for own in smooth]
    floor = once(lambda: [np.asarray(Image.open(io.BytesIO(own))) for own in pictures], time.perf_counter)
    floor *= options.images / len(pictures)
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"bytes": pictures[number % len(pictures)], "path": None} for number in range(options.images)]
        table = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
        table.to_parquet(Path(folder) / "images.parquet")
        own = {"dataset_name": str(Path(folder) / "images.parquet"), "image_cache_dir": str(Path(folder) / "cache")}
        for what in ("images from parquet", "the same from the cache"):
            taken = once(lambda: load_images(**own), time.perf_counter)
            yield {"what": f"{options.images:,} {what}", "seconds": taken, "against_floor": taken / floor}


def _png(pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """A smooth picture with some noise as a file: as hard to decode as a photo of this size."""
    noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "png")
    return buffer.getvalue()


def bench_checkpoint(options: argparse.Namespace) -> Iterator[Row]:
    """How long a checkpoint stops a run, against writing as many bytes to the same disk."""
    recipe, images = run_of(options, "iCT", "fp32", options.batch_sizes[0], False)
    with open_run(recipe, dataset=images) as run, tempfile.TemporaryDirectory() as folder:
        tensors = run.state._tensors()
        size = sum(t.nbytes for part in tensors.values() for t in part.values())
        data = os.urandom(1 << 20)

        def write() -> None:
            with (Path(folder) / "bytes").open("wb") as file:
                for _ in range(size // len(data) + 1):
                    file.write(data)
                os.fsync(file.fileno())

        saved = checkpoint.Checkpoint({"step": 1}, tensors)
        floor = once(write, time.perf_counter)
        taken = once(lambda: checkpoint.save(Path(folder), 1, saved), time.perf_counter)
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
    for name, pair in peers.items():
        found = [[process_seconds([sys.executable, *words]) for words in pair] for _ in range(3)]
        ours, theirs = (statistics.median(times) for times in zip(*found))
        yield {"what": name, "seconds": ours, "against_floor": ours / theirs}
