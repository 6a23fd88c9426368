#!/usr/bin/env python
"""Does ACT's augmentation follow overfitting? A discriminator sees a few images first, then all of them.

    python benchmarks/augmentation_control.py --data cifar10.npz --output benchmarks/results/augmentation_control

Trains ACT three times on the same images: with the augmentation held at p = 0, which gives the distribution of both
signals with and without overfitting, and then with each signal in control of p. Half-way through each run the data grow
from the first FEW images to all. Writes OUTPUT.json (the logs), OUTPUT.md and OUTPUT.png.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, quantiles

import torch
from provenance import heading, provenance

from diffusers_ict.data.dataset import Images
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.run import Run
from diffusers_ict.training.train import train

UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
NEVER = 10**12  # a horizon over which p does not move
KEPT = ("step", "r1", "discriminator_sign", "augment_r", "augment_p", "discriminator_accuracy")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="RGB images, a .npz file; they are resized to 16 pixels")
    parser.add_argument("--output", type=Path, required=True, help="path of the results, without ending")
    parser.add_argument("--few", type=int, default=500, help="images of the first half")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16, help="images of the generator")
    parser.add_argument("--discriminator_batch", type=int, default=32, help="fakes, and as many images, for D")
    parser.add_argument("--discriminator_learning_rate", type=float, default=2e-3)
    parser.add_argument("--taus", nargs=2, type=float, help="of penalty and sign [half-way between the medians]")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def first_images(images: Images, count: int) -> Images:
    """The first `count` images of a data set."""
    pixels, labels = images.part(slice(count))
    return Images(pixels, labels, images.num_classes, images.class_names)


def run(options: argparse.Namespace, signal: str, tau: float, horizon: int) -> list[dict]:
    """The log of one training, with the data growing half-way."""
    plain = Run.draw_batch

    def draw_batch(self: Run, step: int, role: int):
        everything = self.images
        if step < options.steps // 2:
            self.images = first_images(everything, options.few)
        try:
            return plain(self, step, role)
        finally:
            self.images = everything

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "unet.json")
        config.write_text(json.dumps(UNET))
        recipe = Recipe(
            loss="act",
            consistency="ct",
            dataset_name=options.data,
            model_config_name_or_path=str(config),
            train_batch_size=options.batch,
            discriminator_batch_size=options.discriminator_batch,
            resolution=16,
            max_train_steps=options.steps,
            learning_rate=5e-4,
            discriminator_learning_rate=options.discriminator_learning_rate,
            ema_decays=[0.99],
            augment=True,
            augment_signal=signal,
            augment_tau=tau,
            augment_horizon=horizon,
            r1_interval=8,
            logging_steps=8,
            checkpointing_steps=options.steps,
            validation_steps=options.steps,
            num_validation_images=4,
            seed=options.seed,
            output_dir=f"{folder}/run",
        )
        Run.draw_batch = draw_batch
        try:
            train(recipe)
        finally:
            Run.draw_batch = plain
        return [
            {key: entry[key] for key in KEPT} for entry in read_log(Path(folder, "run", "log.jsonl")) if "r1" in entry
        ]


def halves(log: list[dict], options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Entries with few images and with all, without the first third of each, in which D is still learning."""
    middle, third = options.steps // 2, options.steps // 6
    few = [entry for entry in log if third < entry["step"] <= middle]
    return few, [entry for entry in log if entry["step"] > middle + third]


def distribution(entries: list[dict], name: str) -> dict[str, float]:
    low, median, high = quantiles([entry[name] for entry in entries], n=4)
    return {"mean": mean(entry[name] for entry in entries), "quartile": low, "median": median, "quartile_3": high}


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    observed = run(options, "penalty", 1.0, NEVER)
    names = {"penalty": "r1", "sign": "discriminator_sign"}
    found = {s: [distribution(half, name) for half in halves(observed, options)] for s, name in names.items()}
    between = [(few["median"] + everything["median"]) / 2 for few, everything in found.values()]
    taus = dict(zip(names, options.taus or between))
    horizon = (
        (options.batch + 2 * options.discriminator_batch) * options.steps // 4
    )  # a quarter of the run moves p by 1
    logs = {signal: run(options, signal, max(tau, 1e-6), horizon) for signal, tau in taus.items()}
    report = {
        **provenance(),
        "images": options.few,
        "steps": options.steps,
        "distributions": found,
        "taus": taus,
        "horizon": horizon,
        "logs": {"p = 0": observed, **logs},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(report, options))
    plot(report, options.output.with_suffix(".png"))
    print(table(report, options))


def table(report: dict, options: argparse.Namespace) -> str:
    """Markdown: both signals with few images and with all, and where p went."""
    lines = [
        heading(report) + f", {report['steps']} steps, {report['images']} images, then all.",
        "",
        "| signal | median (quartiles), few images | all images | tau | p after few | p at the end |",
        "|" + "---|" * 6,
    ]
    for signal, (few, everything) in report["distributions"].items():
        log = report["logs"][signal]
        after_few = next(entry["augment_p"] for entry in reversed(log) if entry["step"] <= report["steps"] // 2)
        cells = [f"{d['median']:.3g} ({d['quartile']:.3g} to {d['quartile_3']:.3g})" for d in (few, everything)]
        lines.append(
            f"| {signal} | {cells[0]} | {cells[1]} | {report['taus'][signal]:.3g} | {after_few:.2f} | "
            f"{log[-1]['augment_p']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(report: dict, target: Path) -> None:
    """r against tau, and p, for both signals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for column, (signal, tau) in enumerate(report["taus"].items()):
        log = report["logs"][signal]
        steps = [entry["step"] for entry in log]
        above, below = panels[:, column]
        above.plot(steps, [entry["augment_r"] for entry in log], label="r")
        above.axhline(tau, linestyle="--", color="C1", label="tau")
        above.set(title=f"signal: {signal}", ylabel="r" if column == 0 else None)
        below.plot(steps, [entry["augment_p"] for entry in log], color="black")
        below.set(ylim=(-0.02, 1.02), xlabel="optimizer step", ylabel="p" if column == 0 else None)
        for panel in (above, below):
            panel.axvline(report["steps"] // 2, color="grey", linestyle=":")
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    figure.suptitle(f"{report['images']} images, then all (dotted line)", fontsize=10)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
