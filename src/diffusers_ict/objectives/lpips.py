"""LPIPS: the learned perceptual distance that CT and ACT were published with (Zhang et al., arXiv:1801.03924).

    d(a, b) = sum_l mean_{h,w} sum_c w_lc (phi_l(a) - phi_l(b))^2_{hwc},   phi_l of unit length along the channels

phi is any network that gives feature maps: a VGG16 whose weights come from a local file, or the one inside the `lpips`
package where a user has installed it. Nothing is downloaded, and this package never needs torchvision.

The released codes differ from LPIPS as it was published, and from each other:

    CT, CIFAR-10 (JAX)            max pooling       all images resized to 224        target as it is
    CT, ImageNet 64 and LSUN      average pooling   below 256 pixels to 224          target as it is
    ACT                           max pooling       all images resized to 224        target clipped to [-1, 1]
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import interpolate

# Mean and standard deviation of ImageNet, for images in [-1, 1], as in the lpips package.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

# Channels of VGG16's convolutions; 0 is a pooling, before which, as at the end, a feature map is read.
VGG16_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
POOLINGS = ("max", "average")
BELOW = 256


class VGG16(nn.Module):
    """The five feature maps of VGG16 that LPIPS reads; weights named as in torchvision's `vgg16().features`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG16_WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W], normalised -> five feature maps."""
        maps = []
        for layer in self.features:
            if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
                maps.append(x)
            x = layer(x)
        return [*maps, x]


class LPIPS(nn.Module):
    """Perceptual distance of images from targets, [B, C, H, W] x [B, C, H, W] -> [B]; a metric for `CT(metric=...)`.

    The defaults are those of CT's code for CIFAR-10, for images below 256 pixels.

    Args:
        backbone: normalised images [B, 3, H, W] -> feature maps, [B, C_l, H_l, W_l] each. Its weights are frozen.
        linear: a non-negative weight for each channel of each map, [C_l] each.
        smallest: side that images are resized to, bilinearly, where they have fewer than `below` pixels. 0 keeps all
            sizes.
        below: 256 as in CT's code for larger images; 257 resizes those of 256 pixels, too, as ACT's code does.
        pooling: "max", or "average", which replaces every max pooling of the backbone.
        clip_target: clip targets to [-1, 1].

    Images are in [-1, 1]; those of one channel are repeated.

    Raises:
        ValueError: another pooling.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: Callable[[Tensor], Sequence[Tensor]],
        linear: Sequence[Tensor],
        smallest: int = 224,
        *,
        below: int = BELOW,
        pooling: str = "max",
        clip_target: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be {' or '.join(POOLINGS)}, got {pooling}.")
        self.backbone, self.smallest = backbone, smallest
        self.below, self.pooling, self.clip_target = below, pooling, clip_target
        if pooling == "average":
            _average(self)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.linear = nn.ParameterList(weight.detach().reshape(-1, 1, 1) for weight in linear)
        self.eval().requires_grad_(False)

    @classmethod
    def from_safetensors(cls, path: str | Path, smallest: int = 224, **options: Any) -> "LPIPS":
        """VGG16 and its linear layers from one file.

        Its names are those of torchvision's vgg16 (`features.0.weight` ...) and of the lpips package's linear layers
        (`lin0.model.1.weight` ...).

        Raises:
            ValueError: a weight is missing or has another shape.
        """
        backbone = VGG16()
        try:
            weights = load(Path(path).read_bytes())
            linear = [weights[f"lin{i}.model.1.weight"] for i in range(5)]
            backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
        except (KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{Path(path).name} must hold all weights of VGG16 and LPIPS: {reason}") from error
        return cls(backbone, linear, smallest, **options)

    @classmethod
    def from_package(cls, smallest: int = 224, **options: Any) -> "LPIPS":
        """The VGG16 and linear layers of the installed `lpips` package.

        Raises:
            ImportError: it is not installed.
        """
        import lpips

        model = lpips.LPIPS(net="vgg", verbose=False)
        return cls(model.net, [layer.model[-1].weight for layer in model.lins], smallest, **options)

    def settings(self) -> dict[str, Any]:
        """`below`, `pooling` and `clip_target`, where they are not the defaults."""
        defaults = {"below": BELOW, "pooling": "max", "clip_target": False}
        return {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}

    def __repr__(self) -> str:  # identifies an objective of a caller's own when its run is resumed
        shown = {"smallest": self.smallest, **self.settings()}
        return f"LPIPS({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The distance of each pair, [B]."""
        targets = targets.clamp(-1, 1) if self.clip_target else targets
        maps = zip(self._maps(images), self._maps(targets), self.linear)
        return torch.stack([(weight * (x - y).square()).sum(1).mean((1, 2)) for x, y, weight in maps]).sum(0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of unit length along the channels."""
        x = images.expand(-1, 3, -1, -1)
        if self.smallest and x.shape[-1] < self.below:
            x = interpolate(x, size=(self.smallest, self.smallest), mode="bilinear", align_corners=False)
        return [
            m / (m.square().sum(1, keepdim=True) + 1e-10).sqrt() for m in self.backbone((x - self.shift) / self.scale)
        ]


def _average(module: nn.Module) -> None:
    """Replace every max pooling in a module by an average pooling of the same shape."""
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        else:
            _average(child)
