"""The part of bench.py about training steps."""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from itertools import pairwise, product

import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel
from diffusers_step import DiffusersStep
from timing import CUDA, DEVICE, in_turns, matrix_peak, median_ratio, now, once, seconds
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ict.data.dataset import Images
from diffusers_ict.discriminator import ConsistencyDiscriminator
from diffusers_ict.training import networks, train
from diffusers_ict.training.interruption import Interruption
from diffusers_ict.training.log import Metrics
from diffusers_ict.training.opening import open_run
from diffusers_ict.training.optimization import make_optimizer
from diffusers_ict.training.recipe import Recipe, find_shipped
from diffusers_ict.training.unets import read_config

# A step of ADCM costs what one of ECT with adaptive weights does. Its choice of levels comes on top, by up to 2,562
# forward passes of a batch, which take most of an hour on a CPU.
METHODS = {
    "iCT": {"loss": "ict"},
    "CT": {"loss": "ct"},
    "iCT, 1024 references": {"loss": "ict", "reference_batch_size": 1024},
    "ECT": {"loss": "ect"},
    "ECT, adaptive weights": {"loss": "ect", "objective": {"adaptive_weight": True}},
    "ACT on CT": {"loss": "act", "objective": {"consistency": "ct"}},
    "ACT on iCT": {"loss": "act", "objective": {"consistency": "ict"}},
    "relativistic on iCT": {"loss": "relativistic", "objective": {"consistency": "ict", "start": 0.0}},
}
PRECISIONS = {
    "fp32": {},
    "tf32": {"allow_tf32": True},
    "bf16": {"mixed_precision": "bf16"},
    "tf32 channels-last": {"allow_tf32": True, "channels_last": True},
    "bf16 channels-last": {"mixed_precision": "bf16", "channels_last": True},
}
# Forward passes of a step's arithmetic, where a backward pass counts as two: (of the UNet, of the discriminator).
# Consistency: the student forwards and backwards, the teacher forwards. ACT: D on the student's images, and backwards
# to them; then one pass that makes fakes, and D forwards and backwards on fakes and on images. The gradient penalty,
# each 16th step, is not counted, and not timed on CPUs. Relativistic: as ACT, with D on images in the first part, too,
# and on a quarter of the fakes and images moved a little.
PASSES = {"ict": (4, 0), "ct": (4, 0), "ect": (4, 0), "act": (5, 8), "relativistic": (5, 10)}
ADVERSARIAL = ("act", "relativistic")
MODES = ("eager", "captured", "compiled", "reduce-overhead")
Row = dict[str, float | str | None]


class TimingOver(Exception):
    """Ends a run once its steps are timed."""


def bench_steps(options: argparse.Namespace) -> Iterator[Row]:
    """Each method at each batch and precision, against its bare forward passes and against diffusers' own step."""
    for batch, precision in product(options.batch_sizes, options.precisions):
        case: Row = {"batch": batch, "precision": precision}
        try:
            for row in bench_case(options, batch, precision):
                yield {**case, **row}
        except torch.OutOfMemoryError:
            yield {**case, "what": "out of memory"}


def bench_case(options: argparse.Namespace, batch: int, precision: str) -> Iterator[Row]:
    """The floor, the peers, and each method, eagerly and compiled."""
    config = {**read_config(options.unet), "dropout": 0.0}
    unet = UNet2DModel.from_config(config)
    forward = {"unet": forward_of(unet, batch, precision)}
    peak, flops = matrix_peak(precision), flops_of(forward["unet"])
    torch.backends.cuda.matmul.allow_tf32 = precision.startswith("tf32")
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision.startswith("bf16"))
    peers = {
        "PyTorch's own passes and RAdam": bare_step(unet, batch, forward["unet"], autocast),
        "diffusers' step": diffusers_step(config, batch, autocast, options.dropout),
    }
    floors, *times = in_turns([several([(4, forward["unet"])]), *peers.values()], options.repeats)
    floor, peer = statistics.median(floors), statistics.median(times[-1])
    yield {"what": "four bare forward passes", "seconds": floor, "share_of_peak": 4 * flops / floor / peak}
    for what, own in zip(peers, times):
        yield {"what": what, "seconds": statistics.median(own), "against_floor": median_ratio(own, floors)}
    del peers  # and their memory
    if any(METHODS[method]["loss"] in ADVERSARIAL for method in options.methods):
        critic = ConsistencyDiscriminator.from_config(
            ConsistencyDiscriminator.load_config(find_shipped(options.discriminator))
        )
        forward["critic"] = forward_of(critic, batch, precision)
    of_ict: dict[str, float] = {}
    for method, mode in product(options.methods, options.modes):
        passes = PASSES[METHODS[method]["loss"]]
        run = run_of(options, method, precision, batch, mode != "eager")
        with in_mode(mode):
            taken, ratio, memory, first = step_seconds(*run, options, several(list(zip(passes, forward.values()))))
        if method == "iCT":
            of_ict[mode] = taken
        yield {
            "what": method + ("" if mode == "eager" else f", {mode}"),
            "seconds": taken,
            "images_per_second": batch / taken,
            "against_floor": ratio,
            "against_ict": taken / of_ict[mode] if mode in of_ict else None,
            "against_diffusers": peer / taken,
            "share_of_peak": 4 * flops / taken / peak if passes[1] == 0 else None,
            "peak_gib": memory or None,
            "first_step": first if mode != "eager" else None,
        }


@contextmanager
def in_mode(mode: str) -> Iterator[None]:
    """Around a run with `torch_compile`: "captured" is what runs do on one GPU, "compiled" goes without CUDA graphs,
    and "reduce-overhead" has those of torch.compile instead of ours.
    """
    capture, compiled = networks.can_capture, torch.nn.Module.compile
    if mode in ("compiled", "reduce-overhead"):
        networks.can_capture = train.can_capture = lambda *args: False
    if mode == "reduce-overhead":
        torch.nn.Module.compile = partialmethod(compiled, mode=mode)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        networks.can_capture = train.can_capture = capture
        torch.nn.Module.compile = compiled  # type: ignore[method-assign]


def forward_of(network: torch.nn.Module, batch: int, precision: str) -> Callable[[], None]:
    """A forward pass of a network alone, on random images, without gradients."""
    layout = torch.channels_last if "channels-last" in precision else torch.contiguous_format
    network = network.to(DEVICE, memory_format=layout).eval()
    x, level = noise_for(network, batch)
    x = x.to(memory_format=layout)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision.startswith("bf16")):
            network(x, level)

    return forward


def noise_for(network: torch.nn.Module, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(random images, their noise levels)."""
    size = network.config.sample_size
    x = torch.randn(batch, network.config.in_channels, size, size, device=DEVICE)
    return x, torch.full((batch,), 1000.0, device=DEVICE)


def several(passes: list[tuple[int, Callable[[], None]]]) -> Callable[[], None]:
    """Each pass as often as its number says."""

    def run() -> None:
        for number, forward in passes:
            for _ in range(number):
                forward()

    return run


def bare_step(
    network: torch.nn.Module, batch: int, forward: Callable[[], None], autocast: torch.autocast
) -> Callable[[], None]:
    """What PyTorch takes for a step's passes without anything around them: no noise, no dropout, no loss of ours.

    A forward pass without gradients, one with them, its backward pass, and RAdam.
    """
    network = copy.deepcopy(network).train()
    optimizer = make_optimizer(network, 1e-4, (0.9, 0.999))
    x, level = noise_for(network, batch)

    def step() -> None:
        forward()
        with autocast:
            out = network(x, level, return_dict=False)[0]
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def diffusers_step(config: dict, batch: int, autocast: torch.autocast, dropout: float) -> Callable[[], None]:
    """A step as diffusers' own script takes it, on random images."""
    unet = UNet2DModel.from_config({**config, "dropout": dropout}).to(DEVICE)
    step = DiffusersStep(unet, 1000, 1e-4, autocast)
    images, _ = noise_for(unet, batch)
    return lambda: step(images)


def flops_of(function: Callable[[], None]) -> int:
    """Floating point operations of a call: those of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def run_of(
    options: argparse.Namespace, method: str, precision: str, batch: int, compiled: bool
) -> tuple[Recipe, Images]:
    """A run of so many steps on random images that never saves."""
    steps = options.warm + options.timed + 1
    adversarial = METHODS[method]["loss"] in ADVERSARIAL
    act = {"discriminator_config_name_or_path": options.discriminator} if adversarial else {}
    recipe = Recipe(
        **METHODS[method], **PRECISIONS[precision], **act,
        model_config_name_or_path=str(find_shipped(options.unet)), train_batch_size=batch, dropout=options.dropout,
        max_train_steps=max(steps, 16), checkpointing_steps=10**6, validation_steps=10**6, logging_steps=10**6,
        torch_compile=compiled, random_flip=True, output_dir=tempfile.mkdtemp(prefix="bench-"),
    )  # fmt: skip
    config = read_config(options.unet)
    shape = config["in_channels"], config["sample_size"], config["sample_size"]
    return recipe, Images(torch.randint(0, 256, (max(4 * batch, 1024), *shape), dtype=torch.uint8))


def step_seconds(
    recipe: Recipe, images: Images, options: argparse.Namespace, floor: Callable[[], None]
) -> tuple[float, float, float, float]:
    """(time of a step of the training loop, its ratio to the bare passes, peak memory in GiB, time of the first step).

    On a GPU the mean over steps that are not waited for, with the passes before them; on a CPU the median of single
    steps, with the passes between them, so that what slows the machine down slows down both.

    Args:
        floor: the bare passes.
    """
    starts: list[float] = []
    stops: list[float] = []
    floors: list[float] = []
    first: list[float] = []
    began = time.perf_counter()

    def count(self: Metrics, count: int) -> None:
        done = len(stops) + 1
        if done == 1:
            first.append(time.perf_counter() - began)
        last = done == options.warm + options.timed
        if not CUDA or last:
            stops.append(now())
            floors.append(once(floor))
        else:
            stops.append(0.0)
        if last:
            raise TimingOver
        if CUDA and done == options.warm:
            torch.cuda.reset_peak_memory_stats()
        starts.append(now() if not CUDA or done == options.warm else 0.0)

    AcceleratorState._reset_state(reset_partial_state=True)  # it would keep the precision of the run before
    plain, Metrics.count_step = Metrics.count_step, count  # type: ignore[method-assign]
    try:
        with open_run(recipe, dataset=images) as run:
            train._train_steps(run, Interruption(run.accelerator))
    except TimingOver:
        pass
    finally:
        Metrics.count_step = plain  # type: ignore[method-assign]
    if CUDA:
        mean, memory = (stops[-1] - starts[options.warm - 1]) / options.timed, torch.cuda.max_memory_reserved()
        return mean, mean / seconds(floor, options.repeats), memory / 2**30, first[0]
    timed = [stop - start for start, stop in zip(starts[options.warm - 1 :], stops[options.warm :])]
    # Each step lies between the passes after the step before it and those after itself.
    around = [(before + after) / 2 for before, after in pairwise(floors[options.warm - 1 :])]
    return statistics.median(timed), median_ratio(timed, around), 0.0, first[0]
