#!/usr/bin/env python
"""The parts of benchmarks/runs/latents.sh: mosaics of Fashion-MNIST, an autoencoder and a classifier of them, figures.

python benchmarks/runs/latents.py mosaics runs/latents/mosaics.npz --source fashion-mnist.npz
python benchmarks/runs/latents.py autoencoder runs/latents/mosaics.npz runs/latents/vae --steps 2000
python benchmarks/runs/latents.py classifier runs/latents/mosaics.npz runs/latents/classifier.safetensors
python benchmarks/runs/latents.py figures runs/latents/model --data runs/latents/mosaics.npz \\
  --classifier runs/latents/classifier.safetensors --output results/latents
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn.functional import mse_loss

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from fashion_mnist import read  # noqa: E402
from features import accuracy, features, fit_classifier, make_classifier, to_unit  # noqa: E402
from measure import draw, figures, training_of  # noqa: E402
from provenance import provenance, table, write_report  # noqa: E402

from diffusers_ict import ConsistencyPipeline  # noqa: E402
from diffusers_ict.image_grid import as_pictures, labelled_blocks  # noqa: E402

HELD_OUT_PIECES = 1000  # of each class, that no network is trained on
REAL = 10_000  # mosaics of the training that others are compared with
COLUMNS = 10  # of the picture
KL_WEIGHT = 3e-4  # of the mean over the latent's entries, beside the mean squared error


def make_mosaics(source: Path | None, output: Path) -> None:
    """Mosaics of four pieces of one class each: 25,000 of pieces that each stand in two, and 2,500 of other pieces."""
    images, labels = read(source)
    images, generator = np.pad(images, ((0, 0), (2, 2), (2, 2))), np.random.default_rng(0)
    parts: dict[Path, list] = {output: [], held_out(output): []}
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        kept, others = rows[:HELD_OUT_PIECES], rows[HELD_OUT_PIECES:]
        twice = np.concatenate([generator.permutation(others) for _ in range(2)])
        for place, order in ((output, twice), (held_out(output), kept)):
            four = images[order].reshape(-1, 2, 2, 32, 32)
            parts[place].append(four.transpose(0, 1, 3, 2, 4).reshape(-1, 64, 64))
    output.parent.mkdir(parents=True, exist_ok=True)
    for place, mosaics in parts.items():
        classes = np.repeat(np.arange(10), [len(part) for part in mosaics])
        order = generator.permutation(len(classes))
        np.savez(place, images=np.concatenate(mosaics)[order], labels=classes[order])


def held_out(data: Path) -> Path:
    """The file of the mosaics that no network is trained on."""
    return data.with_stem(f"{data.stem}_held_out")


def load(path: Path) -> tuple[Tensor, Tensor]:
    """uint8 [n, 1, 64, 64], and labels [n]."""
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["images"])[:, None], torch.from_numpy(arrays["labels"])


def train_autoencoder(data: Path, output: Path, steps: int, batch: int = 8) -> None:
    """Train a small AutoencoderKL by squared error and KL, and save it."""
    pixels, _ = load(data)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )
    optimizer = torch.optim.Adam(vae.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    for step in range(steps):
        x = to_unit(pixels[torch.randint(len(pixels), (batch,))])
        posterior = vae.encode(x).latent_dist
        latents = posterior.sample()
        error, divergence = mse_loss(vae.decode(latents).sample, x), posterior.kl().mean() / latents[0].numel()
        (error + KL_WEIGHT * divergence).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            print(f"step {step}: squared error {error:.4f}, KL {divergence:.3f}", flush=True)
    vae.save_pretrained(output)


@torch.no_grad()
def reconstructed(pipeline: ConsistencyPipeline, pixels: Tensor) -> Tensor:
    """Images that went through the autoencoder, uint8 [n, 1, 64, 64]."""
    parts = [pipeline.decode_images(pipeline.encode_images(to_unit(part))) for part in pixels.split(100)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def train_classifier(data: Path, output: Path, steps: int, batch: int = 16) -> None:
    """Fit the classifier whose features are compared, in smaller batches than those of smaller images, and save it."""
    net = fit_classifier(*load(data), steps=steps, batch=batch)
    pixels, labels = load(held_out(data))
    print(f"recognises {accuracy(net, pixels, labels):.3f} of the mosaics that it was not fitted on")
    save_model(net, str(output))


def write_figures(model: Path, data: Path, weights: Path, output: Path, samples: int) -> None:
    """Figures of samples, reconstructions and other real images against the data, and a picture of them."""
    others, labels = load(held_out(data))
    pipeline, classifier = ConsistencyPipeline.from_pretrained(model), make_classifier(1, 10).eval()
    load_model(classifier, str(weights))
    extract: Callable[[Tensor], Tensor] = lambda images: features(classifier, images)  # noqa: E731
    real = extract(load(data)[0][:REAL])
    images = {
        "other real images": others[:samples],
        "their reconstructions": reconstructed(pipeline, others[:samples]),
        "1 step": draw(pipeline, 1, samples, seed=1234),
        "2 steps": draw(pipeline, 2, samples, seed=1234),
    }
    results = {name: figures(extract(drawn), real) for name, drawn in images.items()}
    error = (to_unit(images["other real images"]) - to_unit(images["their reconstructions"])).square().mean().item()
    origin = provenance()
    origin["command"] = origin["command"].replace("benchmarks/", "benchmarks/runs/", 1)
    report = {
        **origin,
        "classifier_recognises": accuracy(classifier, others, labels),
        "samples": len(others[:samples]),
        "features": "64 features of the classifier in benchmarks/features.py",
        "squared_error_of_reconstructions": error,
        "scaling_factor": pipeline.vqvae.config.scaling_factor,
        "rows": [{**training_of(model), "results": results}],
    }
    cells = [[n, f"{r['frechet']:.3g}", f"{r['precision']:.2f}", f"{r['recall']:.2f}"] for n, r in results.items()]
    words = f", {report['samples']} images of each row against {len(real)} of the training, {report['features']}."
    write_report(output, report, words, table(["images", "Frechet", "precision", "recall"], cells))
    blocks = {name: as_pictures(to_unit(drawn[: 2 * COLUMNS])) for name, drawn in images.items()}
    labelled_blocks(blocks, COLUMNS).save(output.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    mosaics = parts.add_parser("mosaics")
    mosaics.add_argument("output", type=Path)
    mosaics.add_argument("--source", type=Path, help=".npz file of 28x28 images instead of a download")
    autoencoder = parts.add_parser("autoencoder")
    autoencoder.add_argument("data", type=Path)
    autoencoder.add_argument("output", type=Path)
    autoencoder.add_argument("--steps", type=int, default=2000)
    classifier = parts.add_parser("classifier")
    classifier.add_argument("data", type=Path)
    classifier.add_argument("output", type=Path)
    classifier.add_argument("--steps", type=int, default=600)
    measured = parts.add_parser("figures")
    measured.add_argument("model", type=Path)
    measured.add_argument("--data", type=Path, required=True)
    measured.add_argument("--classifier", type=Path, required=True)
    measured.add_argument("--output", type=Path, required=True)
    measured.add_argument("--samples", type=int, default=2500)
    options = parser.parse_args()
    if options.part == "mosaics":
        make_mosaics(options.source, options.output)
    elif options.part == "autoencoder":
        train_autoencoder(options.data, options.output, options.steps)
    elif options.part == "classifier":
        train_classifier(options.data, options.output, options.steps)
    else:
        write_figures(options.model, options.data, options.classifier, options.output, options.samples)


if __name__ == "__main__":
    main()
