"""The feature network of the comparisons: a small classifier fitted on the real images, the same on every machine.

Distances between its features order models of the same data. They are not FID, and stand beside no figure of a paper.

    python benchmarks/features.py fashion32.npz classifier.pt2    # as a file for evaluate.py --extractor
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def make_classifier(channels: int, classes: int) -> nn.Sequential:
    """Images [B, C, H, W] in [-1, 1] -> logits; all but the last layer give 64 features."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.SiLU(),
        nn.Linear(64, classes),
    )


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pixels.float() / 127.5 - 1


def fit_classifier(pixels: Tensor, labels: Tensor, steps: int = 1500, batch: int = 64, seed: int = 0) -> nn.Sequential:
    """Fit on uint8 images [n, C, H, W] and labels [n]; a function of its arguments."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = make_classifier(pixels.shape[1], int(labels.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        loss = cross_entropy(net(to_unit(pixels[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def features(net: nn.Sequential, pixels: Tensor) -> Tensor:
    """uint8 images [n, C, H, W] -> [n, 64]."""
    return torch.cat([net[:-1](to_unit(chunk)) for chunk in pixels.split(1000)])


@torch.no_grad()
def accuracy(net: nn.Sequential, pixels: Tensor, labels: Tensor) -> float:
    """Share of images whose class the net recognises."""
    logits = torch.cat([net(to_unit(chunk)) for chunk in pixels.split(1000)])
    return (logits.argmax(1) == labels).float().mean().item()


class Exported(nn.Module):
    """The classifier as an extractor of evaluate.py: uint8 [n, C, H, W] -> (features [n, 64], logits)."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.net[:-1](to_unit(images))
        return found, self.net[-1](found)


def labelled_images(data: str, resolution: int | None = None):
    """The images, with labels, of a folder of colour pictures, or of what train_ict.py takes as --dataset_name."""
    from diffusers_ict.data.load import load_images

    named = {"train_data_dir": data, "image_mode": "RGB"} if Path(data).is_dir() else {"dataset_name": data}
    return load_images(**named, resolution=resolution, class_conditional=True)


def main(data: str, file: str) -> None:
    """Fit on labelled images, and export."""
    images = labelled_images(data)
    net = fit_classifier(images.pixels, images.labels)
    batch = {0: torch.export.Dim("n", max=2**20)}
    torch.export.save(torch.export.export(Exported(net), (images.pixels[:2],), dynamic_shapes=(batch,)), file)
    print(f"recognises {accuracy(net, images.pixels, images.labels):.3f} of the images it was fitted on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a labelled .npz file")
    parser.add_argument("file", help="the .pt2 file to write")
    main(**vars(parser.parse_args()))
