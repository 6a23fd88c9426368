#!/usr/bin/env python
"""Methods side by side at equal seconds on the same data: CT, iCT and ACT with one UNet and batch, or those of a file.

    python benchmarks/compare.py --output benchmarks/results/digits                       # the digits of scikit-learn
    python benchmarks/compare.py --data fashion-mnist.npz --resolution 16 --output ...     # any data of train_ict.py
    python benchmarks/compare.py --trials benchmarks/runs/fashion32_trials.yaml --output ...   # settings to choose from

Each method is timed for a few steps, given as many steps as fit into the seconds, trained, and sampled with one and
two steps. Flags of a trial may end with --guidance_scales 1 1.5: samples are drawn with each scale, in a row of its
own. Seconds are those in which a processor worked for the run, so that other work beside it does not count, and those
of each run are measured again: pin the program to one core (taskset -c 1) for methods to be compared at equal cost. The
peer is diffusers' own training script (diffusers_step.py), at as many steps as iCT: with the weights that it publishes,
and with its averaged ones. Writes OUTPUT.json (figures and how they came about), OUTPUT.md and OUTPUT.png.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
import yaml
from compare_report import lines_of, plot
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
from measure import Extractor, evaluate, load_extractor
from provenance import ROOT, parser_of, provenance, write_report
from torch import Tensor

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.data.load import load_images
from diffusers_ict.training.checkpoint import list_checkpoints
from diffusers_ict.training.log import read_log

SCALES = "--guidance_scales"
DAY = 86400  # seconds: no run of a comparison takes longer
PEER = "diffusers' step"
METHODS = {
    PEER: [],
    "CT": ["--loss", "ct"],
    "iCT": ["--loss", "ict"],
    "ACT on CT": "--loss act --objective consistency=ct".split(),
    "ACT on CT, augmented": "--loss act --objective consistency=ct augment=true augment_horizon=50000".split(),
    "ACT on iCT": "--loss act --objective consistency=ict".split(),
    "ACT on iCT, augmented": "--loss act --objective consistency=ict augment=true augment_horizon=50000".split(),
}
# Settings that change what a step costs.
COSTS = "--model_config_name_or_path --train_batch_size --loss consistency augment --dropout --coupling".split()
COSTS += ["--reference_batch_size", "--mixed_precision", "start", "adaptive_weight"]


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", help="what train_ict.py takes as --dataset_name [the digits of scikit-learn]")
    parser.add_argument("--held_out", help="data that no run sees: says how near images are to those of training")
    parser.add_argument("--image_column"), parser.add_argument("--label_column")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--methods", nargs="+", help="some of the methods, by name [all]")
    parser.add_argument("--trials", type=Path, help="YAML file of other methods: their flags by name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seconds", type=float, default=120, help="of training, for each run")
    parser.add_argument("--calibration_steps", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; the cores are shared among them")
    parser.add_argument("--samples", type=int, default=2000, help="images drawn from each model with each step count")
    parser.add_argument("--features", help="a .py or .pt2 file, as evaluate.py takes it [a classifier]")
    parser.add_argument(
        "--work", type=Path, help="folder of the runs, in which a stopped comparison goes on [temporary]"
    )
    parser.add_argument("train_flags", nargs="*", help="after --: flags of train_ict.py for every method")
    options = parser.parse_args()
    known = METHODS if options.trials is None else read_trials(options.trials)
    if unknown := set(options.methods or ()) - known.keys():
        parser.error(f"--methods must be some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    options.methods = {name: known[name] for name in options.methods or known}
    return options


def read_trials(path: Path) -> dict[str, list[str]]:
    """Flags of train_ict.py by the name of the trial; those under `all` belong to every trial, and are given first."""
    trials = {name: shlex.split(flags or "") for name, flags in yaml.safe_load(path.read_text()).items()}
    shared = trials.pop("all", [])
    return {name: [*shared, *flags] for name, flags in trials.items()}


def value_of(flag: str, flags: list[str]) -> str | None:
    """The last value that is given for a flag, or as NAME=VALUE for a setting of the objective."""
    given = [value for word, value in zip(flags, [*flags[1:], "on"]) if word == flag]
    given += [word.partition("=")[2] for word in flags if word.startswith(f"{flag}=")]
    return given[-1] if given else None


def run(flags: list[str], threads: int, program: Path) -> tuple[list[dict], float]:
    """Train in a process of its own: the entries of its log, and the seconds in which a processor worked for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    output = Path(flags[flags.index("--output_dir") + 1])
    output.parent.mkdir(parents=True, exist_ok=True)
    said = output.with_name(f"{output.name}.txt")
    with said.open("w") as told:
        process = subprocess.Popen([sys.executable, str(program), *flags], env=environment, stdout=told, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a run failed: {' '.join(flags)}\n{said.read_text()[-2000:]}")
    return read_log(output / "log.jsonl"), used.ru_utime + used.ru_stime


def cost_of(flags: list[str], program: Path, comparison: "Comparison", reference: str | None) -> tuple[float, float]:
    """Seconds of a processor: those of a step, and those of a run besides.

    Remembered in the work folder for all methods whose steps cost the same, so that they take equally many.

    Args:
        reference: a method whose cost is known. It runs at the same time, so that what else the machine does slows down
            both, and only their ratio counts.
    """
    cost = [program.stem, *(f"{flag.strip('-')} {value}" for flag in COSTS if (value := value_of(flag, flags)))]
    folder = comparison.work / ("calibrate " + ", ".join(cost).replace("/", "_"))
    known = comparison.work / f"{folder.name}.json"
    if not known.exists():
        runs = [(flags, program, folder)]
        if reference is not None:
            beside = comparison.flags_of(reference), comparison.program_of(reference)
            runs.append((*beside, folder.with_name(f"{folder.name}, beside")))
        measured = calibrate(runs, comparison.options.calibration_steps, comparison.threads)
        (step, besides), *others = measured
        for peer, _ in others:
            step *= comparison.costs[str(reference)][0] / peer
        known.write_text(json.dumps([step, besides]))
    step, besides = json.loads(known.read_text())
    return step, besides


def calibrate(runs: list[tuple[list[str], Path, Path]], steps: int, threads: int) -> list[tuple[float, float]]:
    """Seconds of a step, and of a run besides, of (flags, program, folder) that run at the same time.

    Steps of an alignment cost less: where a method has one, it is over before the first measurement.
    """

    def worked(run_: tuple[list[str], Path, Path], count: int) -> float:
        flags, program, folder = run_
        shutil.rmtree(folder, ignore_errors=True)
        if value_of("align_steps", flags) is not None:
            flags = [*flags, "--objective", f"align_steps={steps // 4}"]
        return run([*flags, "--max_train_steps", str(count), "--output_dir", str(folder)], threads, program)[1]

    few, many = steps // 3, steps
    with ThreadPoolExecutor(len(runs)) as pool:
        least, most = (list(pool.map(worked, runs, [count] * len(runs))) for count in (few, many))
    slopes = [(high - low) / (many - few) for low, high in zip(least, most)]
    return [(slope, high - many * slope) for slope, high in zip(slopes, most)]


def train(flags: list[str], folder: Path, steps: int, threads: int, program: Path) -> tuple[list[dict], float]:
    """One run of the comparison, taken up again where an earlier call was stopped."""
    flags = [*flags, "--max_train_steps", str(steps), "--checkpointing_steps", str(max(steps // 8, 1))]
    if list_checkpoints(folder):
        flags += ["--resume_from_checkpoint", "latest"]
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return run([*flags, "--output_dir", str(folder)], threads, program)


@dataclass
class Comparison:
    """What the runs of a comparison share.

    Attributes:
        work: folder of the runs.
        common: flags of every run.
        real: features of all images.
        costs: of each method, seconds of a step and of a run besides.
    """

    options: argparse.Namespace
    work: Path
    common: list[str]
    threads: int
    device: str
    extract: Extractor
    real: Tensor
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    held_out: Tensor | None = None

    def plan(self) -> None:
        """Measure what each method costs; the peer takes as many steps as iCT."""
        own = [name for name in self.options.methods if name != PEER or "iCT" not in self.options.methods]
        reference = None
        for name in own:  # one after another: those that cost the same are measured once
            self.costs[name] = cost_of(self.flags_of(name), self.program_of(name), self, reference)
            reference = reference or name
        if PEER in self.options.methods:
            self.costs.setdefault(PEER, self.costs.get("iCT", (1.0, 0.0)))

    def steps(self, method: str) -> int:
        """Those that fit into the seconds."""
        return max(16, int(self.options.seconds / self.costs[method][0]))

    def flags_of(self, method: str) -> list[str]:
        """Those of training."""
        flags = self.options.methods[method]
        return [*self.common, *flags[: flags.index(SCALES) if SCALES in flags else None]]

    def program_of(self, method: str) -> Path:
        """The script that trains a method."""
        if method == PEER:
            return ROOT / "benchmarks/diffusers_train.py"
        coupled = value_of("--coupling", self.flags_of(method))
        return ROOT / ("benchmarks/coupled_train.py" if coupled else "train_scripts/train_ict.py")

    def rows(self, method: str, seed: int) -> list[dict]:
        """Train and measure, if that was not done before: one row for each model that the run leaves."""
        folder = self.work / f"{method}, seed {seed}"
        done = self.work / f"{folder.name}.json"
        if not done.exists():
            steps = self.steps(method)
            flags = [*self.flags_of(method), "--seed", str(seed)]
            log, used = train(flags, folder, steps, self.threads, self.program_of(method))
            shared = {"seed": seed, "steps": steps, "train_seconds": log[-1]["train_seconds"]}
            shared["worked_seconds"] = used - self.costs[method][1]
            shared["augment_p"] = max(entry.get("augment_p", 0.0) for entry in log)
            if start := value_of("--pretrained_model_name_or_path", flags):
                shared["start_seconds"] = read_log(Path(start) / "log.jsonl")[-1]["train_seconds"]
            rows = []
            scales = guidance_scales(self.options.methods[method])
            for (name, pipeline), scale in product(models_of(method, folder).items(), scales or [1.0]):
                guided = {} if scale == 1 else {"guidance_scale": scale}
                title = f"{name}, guidance {scale:g}" if guided else name
                measured = self.extract, self.real, self.options.samples, self.held_out
                results = evaluate(pipeline.to(self.device), folder / f"grid-{scale:g}", *measured, **guided)
                rows.append({"method": title, **shared, "results": results})
            done.write_text(json.dumps(rows))
            print(done.read_text(), flush=True)
        return json.loads(done.read_text())


def guidance_scales(flags: list[str]) -> list[float]:
    """With which samples of a method are drawn: what follows --guidance_scales, at the end of its flags."""
    return [float(word) for word in flags[flags.index(SCALES) + 1 :]] if SCALES in flags else []


def models_of(method: str, folder: Path) -> dict[str, DiffusionPipeline]:
    """The models that a run leaves, by the name of their row."""
    if method != PEER:
        return {method: ConsistencyPipeline.from_pretrained(folder)}
    parts = {f"{PEER}, as published": folder, f"{PEER}, averaged": folder / "averaged"}
    return {name: ConsistencyModelPipeline.from_pretrained(part) for name, part in parts.items()}


def main() -> None:
    options = arguments()
    work = options.work or Path(tempfile.mkdtemp(prefix="compare-"))
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = options.data or str(write_digits(work / "digits.npz"))
    named = {"image_column": options.image_column, "label_column": options.label_column}
    images = load_images(dataset_name=data, resolution=options.resolution, class_conditional=True, **named)
    cores = torch.get_num_threads()  # those that this process may use
    common = ["--dataset_name", data, *options.train_flags]
    for name, value in (*named.items(), ("resolution", options.resolution)):
        common += [f"--{name}", str(value)] if value is not None else []
    torch.set_num_threads(max(1, cores // 2))
    extract, extractor = load_extractor(options.features, images, device)
    real = extract(images.pixels)
    comparison = Comparison(options, work, common, max(1, cores // options.jobs), device, extract, real)
    if options.held_out:
        unseen = load_images(
            dataset_name=options.held_out, resolution=options.resolution, class_conditional=True, **named
        )
        comparison.held_out = extract(unseen.pixels)
    comparison.plan()
    print("steps:", {name: comparison.steps(name) for name in options.methods}, flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [(method, seed) for seed in options.seeds for method in options.methods]
        rows = [row for rows in pool.map(lambda job: comparison.rows(*job), jobs) for row in rows]
    report = {
        **provenance(),
        "jobs": options.jobs,
        "images": len(images),
        "shape": list(images.shape),
        "samples": options.samples,
        "reference": "the whole training set",
        "features": extractor,
        "seconds": options.seconds,
        "train_flags": options.train_flags,
        "methods": options.methods,
        "rows": rows,
    }
    write_report(options.output, report, f", {options.samples} samples, {extractor}.", lines_of(report))
    plot(report, options.output.with_suffix(".png"))


def write_digits(path: Path) -> Path:
    """The 1,797 digits of scikit-learn, 8 x 8, as .npz."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(path, images=(digits.images * 255 / 16).round().astype(np.uint8), labels=digits.target)
    return path


if __name__ == "__main__":
    main()
