#!/usr/bin/env python
"""Checks of a GPU before anything is measured on it: what a compiler needs, that no step waits, and odd settings.

    python benchmarks/gpu_check.py preflight    # a compiler, Python's headers, and a small compiled function
    python benchmarks/gpu_check.py sync         # 20 eager and 20 captured steps of each loss read nothing of the device
    python benchmarks/gpu_check.py masks        # student and teacher drop the same units, also in a replayed graph
    python benchmarks/gpu_check.py settings     # fp16, a micro batch of one, channels last
    python benchmarks/gpu_check.py profile      # the kernels of ten captured steps, by time

Each prints a line for each thing that it looked at, and ends with code 1 where one was wrong. Without a GPU it runs on
the CPU, where nothing can be captured: a rehearsal.
"""

import argparse
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from bench_step import TimingOver

from diffusers_ict.data.dataset import Images
from diffusers_ict.formulas.dropout import reuse_masks, share_dropout
from diffusers_ict.training import train
from diffusers_ict.training.captured import Captured
from diffusers_ict.training.interruption import Interruption
from diffusers_ict.training.log import Metrics
from diffusers_ict.training.opening import open_run
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.run import Run

CUDA = torch.cuda.is_available()
LOSSES = {  # not ADCM, which reads levels from its network, and needs one that denoises to choose few
    "ict": {"loss": "ict", "objective": {"s0": 2, "s1": 8}},
    "ect": {"loss": "ect", "objective": {"align_steps": 4}},
    "ct": {"loss": "ct", "objective": {"s0": 2, "s1": 8}},
    "act": {"loss": "act", "objective": {"consistency": "ict", "s0": 2, "s1": 8, "augment": True}},
    "relativistic": {"loss": "relativistic", "objective": {"consistency": "ict", "s0": 2, "s1": 8, "start": 0.0}},
}
WARM, STEPS = 17, 20  # graphs are captured before, and so is a gradient penalty
Line = tuple[str, str]  # what was looked at, and what is wrong with it, if anything is


def recipe_of(**changes) -> Recipe:
    """A run that never saves."""
    shared = {"train_batch_size": 8, "dropout": 0.1, "checkpointing_steps": 10**6, "validation_steps": 10**6}
    shared["model_config_name_or_path"] = str(Path(__file__).parent / "unet_16.json")
    return Recipe(
        **{**shared, "max_train_steps": 100, "logging_steps": 10**6, **changes},
        output_dir=tempfile.mkdtemp(prefix="gpu-check-"),
    )


def images() -> Images:
    """Random pictures of 16 pixels."""
    return Images(torch.randint(0, 256, (256, 1, 16, 16), dtype=torch.uint8))


def steps_of(recipe: Recipe, count: int, before: Callable[[int], None] = lambda step: None) -> None:
    """So many steps of the training loop; `before` is called before each."""
    AcceleratorState._reset_state(reset_partial_state=True)
    draw, counted = Run.micro_batches, Metrics.count_step

    def drawing(self, role, step):
        if role == 0:
            before(step)
        return draw(self, role, step)

    def counting(self, number):
        if self.progress.n + 1 >= count:
            raise TimingOver
        self.progress.update()

    Run.micro_batches, Metrics.count_step = drawing, counting  # type: ignore[method-assign]
    try:
        with open_run(recipe, dataset=images()) as run:
            train._train_steps(run, Interruption(run.accelerator))
    except TimingOver:
        pass
    finally:
        Run.micro_batches, Metrics.count_step = draw, counted  # type: ignore[method-assign]
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")


def preflight() -> Iterator[Line]:
    """What torch.compile needs."""
    yield "a C compiler", "" if shutil.which("gcc") or shutil.which("cc") else "there is none: install gcc"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    yield "Python.h", "" if header.is_file() else f"there is no {header.name}: install the headers of Python"
    began = time.perf_counter()
    try:
        x = torch.randn(64, device="cuda" if CUDA else "cpu")
        wrong = "" if torch.allclose(torch.compile(torch.sin)(x), x.sin()) else "it computes something else"
    except Exception as error:  # of a compiler, whatever it raises
        wrong = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    yield f"a compiled function, {time.perf_counter() - began:.0f} s", wrong


def sync() -> Iterator[Line]:
    """Steps of each loss under PyTorch's own watch over reads of the device."""

    def watch(step: int) -> None:
        if CUDA and step == WARM:
            torch.cuda.set_sync_debug_mode("error")

    for captured in (False, True) if CUDA else (False,):
        for name, settings in LOSSES.items():
            with told() as wrong:
                steps_of(recipe_of(**settings, torch_compile=captured), WARM + STEPS, watch)
            yield f"{name}, {'captured' if captured else 'eager'}", wrong[0]


def masks() -> Iterator[Line]:
    """Two passes with one seed, eager and replayed, as student and teacher have them."""
    device = "cuda" if CUDA else "cpu"
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5)).to(device).train()
    share_dropout(net)
    x = torch.ones(32, 64, device=device)

    def pair(x: torch.Tensor) -> torch.Tensor:
        student = net(x)
        with reuse_masks():
            return torch.stack([student, net(x)])

    seen = []
    call = Captured(pair) if CUDA else pair
    for seed in (1, 2, 3, 4, 5, 6, 5):
        torch.manual_seed(seed)
        with torch.no_grad():
            student, teacher = call(x)
        seen.append(student.clone())
        yield f"seed {seed}", "" if torch.equal(student == 0, teacher == 0) else "student and teacher drop other units"
    yield "seed 5 twice", "" if torch.equal(seen[4], seen[6]) else "one seed drops other units each time"
    yield "seeds 4 and 5", "" if not torch.equal(seen[3], seen[4]) else "two seeds drop the same units"


def settings() -> Iterator[Line]:
    """Short runs with settings that few have."""
    cases = {
        "a micro batch of one": {"train_batch_size": 1, "gradient_accumulation_steps": 4},
        "channels last": {"channels_last": True},
        "bf16": {"mixed_precision": "bf16"},
        **({"fp16": {"mixed_precision": "fp16"}} if CUDA else {}),
    }
    for name, changes in cases.items():
        for loss in ("ict", "act"):
            for compiled in (False, True) if CUDA else (False,):
                with told() as wrong:
                    steps_of(recipe_of(**LOSSES[loss], **changes, torch_compile=compiled), 24)
                yield f"{name}, {loss}{', compiled' if compiled else ''}", wrong[0]


def profile() -> Iterator[Line]:
    """The kernels of ten steps, by their time."""
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if CUDA else [])]
    for captured in (False, True) if CUDA else (False,):
        profiler = torch.profiler.profile(activities=kinds)
        steps_of(
            recipe_of(**LOSSES["ict"], torch_compile=captured),
            WARM + 10,
            lambda step, profiler=profiler: profiler.start() if step == WARM else None,
        )
        profiler.stop()
        by = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60), flush=True)
        yield f"ten steps, {'captured' if captured else 'eager'}", ""


@contextmanager
def told() -> Iterator[list[str]]:
    """What is raised inside, in words, as the only entry of a list; "" where nothing is."""
    wrong = [""]
    try:
        yield wrong
    except Exception as error:  # whatever a step of the loop raises is what is looked for
        wrong[0] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def main() -> int:
    checks = {check.__name__: check for check in (preflight, sync, masks, settings, profile)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("check", choices=checks)
    bad = 0
    for what, wrong in checks[parser.parse_args().check]():
        print(f"{'WRONG' if wrong else 'ok':5}  {what}{': ' if wrong else ''}{wrong}", flush=True)
        bad += bool(wrong)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
