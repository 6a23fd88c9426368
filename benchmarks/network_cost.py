#!/usr/bin/env python
"""Estimate what training takes: operations and memory counted without a GPU, and times from runs that were measured.

    python benchmarks/network_cost.py --output benchmarks/results/network_cost

A step of iCT costs four forward passes: student, teacher, and a backward pass of two. The memory of an image is what
autograd keeps of the student; that of the networks, at any batch, is five times their weights in float32: weights,
gradients, two moments and an average. Times of a CPU follow from two committed runs on one core. Times of a GPU follow
from its peak: at least the share of it that an H200 reached in results/step_speed_h200.md, at most half, and no
step is shorter than one of that run, whose kernels take that long to start.
"""

import json
import sys

import torch
from diffusers import UNet2DModel
from provenance import ROOT, parser_of, provenance, table, write_report
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ict.commands.program import run_program
from diffusers_ict.training.unets import SMALL, default_unet_config, read_config

PASSES = 4  # forward passes that a step of iCT costs as much as
COPIES = 5  # of the weights
CHECKED = "act_cifar10_unet.json"  # whose memory and speed were measured
RUNS = ("avatars", "fashion32")  # in model_cards/, of one network at 32x32, on one core
GALLERY = "of the gallery"  # that network
H200_PEAK, MOST = 494e12, 0.5  # TF32, as PyTorch convolves by default; and the share that is hoped for
GPUS = {"T4": (8.1e12, 15), "A100": (156e12, 40)}  # peak of float32 or TF32, and GiB; by NVIDIA's data sheets
FULL = 0.8  # of the memory of a GPU that a micro batch may take, which accumulation makes smaller
NETWORKS = {"one CPU core": (GALLERY, "small_budget"), "T4": ("small_budget", "default"), "A100": ("default",)}
BATCHES = {GALLERY: 16, "small_budget": 16, "default": 64}


def networks() -> list[tuple[str, int, UNet2DModel]]:
    """(name, side, network) for pictures of three colours without classes; without memory for weights or images."""
    small = {**read_config(SMALL), "in_channels": 3, "out_channels": 3}
    narrow = read_config(str(ROOT / "benchmarks" / "runs" / "fashion32_unets" / "narrow.json"))
    configs = [(GALLERY, 32, {**narrow, "in_channels": 3, "out_channels": 3, "sample_size": 32})]
    configs += [("small_budget", side, {**small, "sample_size": side}) for side in (32, 64, 128)]
    configs += [("default", side, default_unet_config(side, 3, None)) for side in (32, 64, 128)]
    configs += [(CHECKED.removesuffix(".json"), 32, read_config(CHECKED))]
    with torch.device("meta"):
        return [(name, side, UNet2DModel.from_config(config)) for name, side, config in configs]


def cost(unet: UNet2DModel, side: int) -> dict[str, float]:
    """Parameters, operations of the forward pass of one image (a multiplication and an addition are two), and the bytes
    that autograd keeps for its backward pass."""
    images, times = torch.empty(1, unet.config.in_channels, side, side, device="meta"), torch.ones(1, device="meta")
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    weights = {weight.untyped_storage()._cdata for weight in unet.parameters()}
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = unet.train()(images, times, return_dict=False)[0].sum()
    del loss
    return {
        "parameters": sum(weight.numel() for weight in unet.parameters()),
        "operations": counter.get_total_flops(),
        "bytes": sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
    }


def cpu_speeds() -> list[float]:
    """Operations a second of one core in the committed runs."""
    operations = next(cost(unet, side)["operations"] for name, side, unet in networks() if name == GALLERY)
    speeds = []
    for name in RUNS:
        run = json.loads((ROOT / "model_cards" / name / "run.json").read_text("utf-8"))
        speeds.append(PASSES * operations * run["images_seen"] / run["train_seconds"])
    return sorted(speeds)


def gpu_run() -> dict:
    """The committed steps of iCT on an H200: float32, not compiled."""
    report = json.loads((ROOT / "benchmarks" / "results" / "step_speed_h200.json").read_text("utf-8"))
    (row,) = (r for r in report["rows"] if (r["method"], r["precision"], r["compiled"]) == ("iCT", "fp32", False))
    return {**row, "batch_size": report["batch_size"]}


def minutes(seconds: tuple[float, float]) -> str:
    """A range for 1,000 steps, in minutes up to two hours."""
    low, high = (1000 * value / 60 for value in seconds)
    if high < 120:
        words = [f"{value:.1g}" if value < 10 else f"{value:.2g}" for value in (low, high)]
        return (words[0] if words[0] == words[1] else " to ".join(words)) + " minutes"
    return f"{low / 60:.1f} to {high / 60:.1f} hours"


def memory(row: dict, batch: int) -> float:
    """GiB of a network and a micro batch."""
    return (4 * COPIES * row["parameters"] + batch * row["bytes"]) / 2**30


def estimates(rows: list[dict]) -> list[list[str]]:
    """Lines of the table: machine, pixels, network, batch, time of 1,000 steps, memory."""
    slow, fast = cpu_speeds()
    measured = gpu_run()
    checked = next(row for row in rows if row["network"] == CHECKED.removesuffix(".json"))
    share = PASSES * checked["operations"] * measured["images_per_second"] / H200_PEAK
    least = measured["batch_size"] / measured["images_per_second"]  # seconds of a step
    lines = []
    for machine in NETWORKS:
        for row in rows:
            if row is checked or row["network"] not in NETWORKS[machine]:
                continue
            batch = BATCHES[row["network"]]
            step = PASSES * batch * row["operations"]
            if machine == "one CPU core":
                kind, time = "measured" if row["network"] == GALLERY else "estimated", (step / fast, step / slow)
            else:
                kind, peak = "estimated", GPUS[machine][0]
                time = (max(least, step / peak / MOST), max(least, step / peak / share))
            room = GPUS[machine][1] if machine in GPUS else None
            parts = next(n for n in (1, 2, 4, 8) if room is None or memory(row, batch // n) < FULL * room)
            fits = f"{memory(row, batch // parts):.2g} GiB" + (f" of {room}" if room else "")
            micro = f"{batch // parts} x {parts}" if parts > 1 else f"{batch}"
            lines.append([machine, f"{row['side']}", row["network"], micro, f"{minutes(time)}, {kind}", fits])
    predicted = memory(checked, measured["batch_size"])
    speed = f"{1000 * least / 60:.1g} minutes, measured"
    lines.append(
        ["H200", "32", "of act_cifar10", f"{measured['batch_size']}", speed,
         f"{predicted:.2g} GiB; {measured['peak_gib']:.2g} measured"]
    )  # fmt: skip
    return lines


def main() -> None:
    options = parser_of(__doc__).parse_args()
    rows = [{"network": name, "side": side, **cost(unet, side)} for name, side, unet in networks()]
    counted = [
        [r["network"], f"{r['side']}", f"{r['parameters'] / 1e6:.2f} M", f"{r['operations'] / 1e9:.3g}",
         f"{r['bytes'] / 2**20:.3g}"]
        for r in rows
    ]  # fmt: skip
    first = ["machine", "pixels", "network", "batch", "1,000 steps", "memory"]
    second = ["network", "pixels", "parameters", "GFLOP of a forward pass of an image", "MiB kept of an image"]
    words = ". Counted and estimated as the head of the program says; only what is called measured was measured."
    lines = [*table(first, estimates(rows)), "", *table(second, counted)]
    write_report(options.output, {**provenance(), "rows": rows}, words, lines)


if __name__ == "__main__":
    sys.exit(run_program("network_cost.py", main))
