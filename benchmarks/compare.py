#!/usr/bin/env python
"""Methods side by side at equal seconds on the same data: CT, iCT and ACT with one UNet and batch, or those of a file.

    python benchmarks/compare.py --output benchmarks/results/digits                       # the digits of scikit-learn
    python benchmarks/compare.py --data fashion-mnist.npz --resolution 16 --output ...     # any data of train_ict.py
    python benchmarks/compare.py --trials benchmarks/runs/fashion32_trials.yaml --output ...   # settings to choose from

Each method is timed for a few steps, given as many steps as fit into the seconds, trained by
train_scripts/train_ict.py, and sampled with one and two steps. Writes OUTPUT.json (figures and how they came about),
OUTPUT.md and OUTPUT.png.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml
from features import features as classifier_features
from features import fit_classifier
from provenance import ROOT, heading, provenance
from torch import Tensor

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.data.images import Images, load_images
from diffusers_ict.data.pictures import image_grid
from diffusers_ict.evaluation import frechet_distance, precision_recall
from diffusers_ict.training.checkpoint import list_checkpoints

METHODS = {
    "CT": ["--loss", "ct"],
    "iCT": ["--loss", "ict"],
    "ACT on CT": ["--loss", "act", "--consistency", "ct"],
    "ACT on CT, augmented": ["--loss", "act", "--consistency", "ct", "--augment"],
    "ACT on iCT": ["--loss", "act", "--consistency", "ict"],
    "ACT on iCT, augmented": ["--loss", "act", "--consistency", "ict", "--augment"],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="what train_ict.py takes as --dataset_name [the digits of scikit-learn]")
    parser.add_argument("--image_column"), parser.add_argument("--label_column")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--output", type=Path, required=True, help="path of the results, without ending")
    parser.add_argument("--methods", nargs="+", help="some of the methods, by name [all]")
    parser.add_argument("--trials", type=Path, help="YAML file of other methods: their flags by name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seconds", type=float, default=120, help="of training, for each run")
    parser.add_argument("--calibration_steps", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; the cores are shared among them")
    parser.add_argument("--samples", type=int, default=2000, help="images drawn from each model with each step count")
    parser.add_argument("--features", help="Python file with features(uint8 [n, C, H, W], device) -> [n, d]")
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


def batch_of(flags: list[str]) -> int:
    """Images of a step: the last value that is given, or the program's own."""
    given = [flags[at + 1] for at, flag in enumerate(flags) if flag == "--train_batch_size"]
    return int(given[-1]) if given else 64


def run(flags: list[str], threads: int) -> list[dict]:
    """Train in a process of its own; the entries of its log."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    command = [sys.executable, str(ROOT / "train_scripts/train_ict.py"), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a run failed: {' '.join(flags)}\n{done.stderr[-2000:]}")
    output = Path(flags[flags.index("--output_dir") + 1])
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def steps_for(flags: list[str], options: argparse.Namespace, folder: Path, threads: int) -> int:
    """How many steps fit into the seconds, from the median speed after warming up. Remembered in the work folder."""
    known = folder.with_suffix(".json")
    if not known.exists():
        shutil.rmtree(folder, ignore_errors=True)
        log = run([*flags, "--max_train_steps", str(options.calibration_steps), "--output_dir", str(folder)], threads)
        speed = float(np.median([entry["images_per_second"] for entry in log[len(log) // 3 :]]))
        known.write_text(json.dumps(max(int(options.seconds * speed / batch_of(flags)), 16)))
    return json.loads(known.read_text())


def train(flags: list[str], folder: Path, steps: int, threads: int) -> list[dict]:
    """One run of the comparison, taken up again where an earlier call was stopped."""
    flags = [*flags, "--max_train_steps", str(steps), "--checkpointing_steps", str(max(steps // 8, 1))]
    if list_checkpoints(folder):
        flags += ["--resume_from_checkpoint", "latest"]
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return run([*flags, "--output_dir", str(folder)], threads)


@torch.no_grad()
def draw(folder: Path, steps: int, count: int, seed: int, device: str) -> Tensor:
    """uint8 images [count, C, H, W] of a trained model."""
    pipeline = ConsistencyPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for start in range(0, count, 500):
        size = min(500, count - start)
        drawn = pipeline(size, None, steps, generator=generator, output_type="pt").images
        parts.append((drawn * 255).round().to(torch.uint8).cpu())
    return torch.cat(parts)


def evaluate(folder: Path, extract: Callable, real: Tensor, count: int, device: str) -> dict:
    """Frechet distance, precision and recall with one and two steps, against features of the whole data."""
    out = {}
    for steps in (1, 2):
        images = draw(folder, steps, count, seed=1234, device=device)
        fake = extract(images)
        precision, recall = precision_recall(real[:5000], fake[:5000])
        out[f"{steps}"] = {"frechet": frechet_distance(real, fake), "precision": precision, "recall": recall}
        first = images[:64].permute(0, 2, 3, 1).numpy() / 255
        image_grid(first, 16, zoom=2).save(folder / f"grid-{steps}.png")
    return out


def load_extractor(options: argparse.Namespace, images: Images, device: str) -> tuple[Callable, str]:
    """(features of uint8 images on the CPU, what they are)."""
    if options.features is None:
        net = fit_classifier(images.pixels, images.labels)
        return lambda pixels: classifier_features(
            net, pixels
        ), "64 features of the classifier in benchmarks/features.py"
    spec = importlib.util.spec_from_file_location("given_features", options.features)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda pixels: module.features(pixels, device), f"features() of {Path(options.features).name}"


def settings(options: argparse.Namespace, images: Images, extractor: str) -> dict:
    """What a reader needs to do it again."""
    return {
        **provenance(),
        "jobs": options.jobs,
        "images": len(images),
        "shape": list(images.shape),
        "samples": options.samples,
        "reference": "the whole training set",
        "features": extractor,
        "seconds": options.seconds,
    }


def main() -> None:
    options = arguments()
    work = options.work or Path(tempfile.mkdtemp(prefix="compare-"))
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = options.data or str(write_digits(work / "digits.npz"))
    named = {"image_column": options.image_column, "label_column": options.label_column}
    images = load_images(dataset_name=data, resolution=options.resolution, class_conditional=True, **named)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    common = ["--dataset_name", data, *options.train_flags]
    for name, value in (*named.items(), ("resolution", options.resolution)):
        common += [f"--{name}", str(value)] if value is not None else []
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))

    with ThreadPoolExecutor(options.jobs) as pool:
        extract, extractor = load_extractor(options, images, device)
        real = extract(images.pixels)
        plan = pool.map(
            lambda m: steps_for([*common, *options.methods[m]], options, work / f"calibrate {m}", threads),
            options.methods,
        )
        steps = dict(zip(options.methods, plan))
        print("steps:", steps, flush=True)

        def one(method: str, seed: int) -> dict:
            folder = work / f"{method}, seed {seed}"
            done = folder.with_suffix(".json")
            if not done.exists():
                flags = [*common, *options.methods[method], "--seed", str(seed)]
                log = train(flags, folder, steps[method], threads)
                row = {"method": method, "seed": seed, "steps": steps[method]}
                row["train_seconds"] = log[-1]["train_seconds"]
                row["augment_p"] = max(entry.get("augment_p", 0.0) for entry in log)
                row["results"] = evaluate(folder, extract, real, options.samples, device)
                done.write_text(json.dumps(row))
                print(done.read_text(), flush=True)
            return json.loads(done.read_text())

        jobs = [(method, seed) for seed in options.seeds for method in options.methods]
        rows = list(pool.map(lambda job: one(*job), jobs))
    report = {
        **settings(options, images, extractor),
        "train_flags": options.train_flags,
        "methods": options.methods,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(report))
    plot(report, options.output.with_suffix(".png"))
    print(table(report))


def write_digits(path: Path) -> Path:
    """The 1,797 digits of scikit-learn, 8 x 8, as .npz."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(path, images=(digits.images * 255 / 16).round().astype(np.uint8), labels=digits.target)
    return path


def grouped(report: dict) -> dict[str, list[dict]]:
    out: dict[str, list[dict]] = {}
    for row in report["rows"]:
        out.setdefault(row["method"], []).append(row)
    return out


def table(report: dict) -> str:
    """Markdown: mean over the seeds, and each seed's Frechet distance."""
    head = (
        "| method | steps | Frechet 1 step | 2 steps | precision 1 / 2 | recall 1 / 2 | each seed, 1 step | 2 steps |"
    )
    origin = f"{heading(report)}, {report['samples']} samples, {report['features']}."
    lines = [origin, "", head, "|" + "---|" * 8]
    for method, rows in grouped(report).items():

        def mean(step: str, metric: str, rows=rows) -> float:
            return float(np.mean([row["results"][step][metric] for row in rows]))

        each = [", ".join(f"{row['results'][s]['frechet']:.3g}" for row in rows) for s in ("1", "2")]
        lines.append(
            f"| {method} | {rows[0]['steps']} | {mean('1', 'frechet'):.3g} | {mean('2', 'frechet'):.3g} | "
            f"{mean('1', 'precision'):.2f} / {mean('2', 'precision'):.2f} | "
            f"{mean('1', 'recall'):.2f} / {mean('2', 'recall'):.2f} | {each[0]} | {each[1]} |"
        )
    return "\n".join(lines) + "\n"


def plot(report: dict, target: Path) -> None:
    """Frechet distance of every run, one and two steps."""
    from matplotlib.figure import Figure

    methods = grouped(report)
    figure = Figure(figsize=(9, 0.6 * len(methods) + 1.5), layout="constrained")
    axes = figure.subplots()
    for steps, marker in (("1", "o"), ("2", "x")):
        points = [(row["results"][steps]["frechet"], i) for i, rows in enumerate(methods.values()) for row in rows]
        axes.scatter(*zip(*points), marker=marker, label=f"{steps} step{'s' if steps == '2' else ''}")
    axes.set(xscale="log", xlabel=f"Frechet distance ({report['features']})", yticks=range(len(methods)))
    axes.set_yticklabels(list(methods))
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
