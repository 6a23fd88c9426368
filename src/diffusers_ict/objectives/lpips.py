"""LPIPS: the learned perceptual distance that CT and ACT were published with (Zhang et al., arXiv:1801.03924).

    d(a, b) = sum_l mean_{h,w} sum_c w_lc (phi_l(a) - phi_l(b))^2_{hwc},   phi_l of unit length along the channels

phi is any network that gives feature maps: a VGG16 whose weights come from a local file, or the one inside the `lpips`
package where a user has installed it. Nothing is downloaded, and this package never needs torchvision.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import first_line

# Mean and standard deviation of ImageNet, for images in [-1, 1], as in the lpips package.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

# Channels of VGG16's convolutions; each block but the first begins with a pooling, each ends in a feature map.
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The five feature maps of VGG16 that LPIPS reads; weights named as in torchvision's `vgg16().features`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps = []
        channels = 3
        for number, block in enumerate(VGG16_BLOCKS):
            if number:
                layers.append(nn.MaxPool2d(2))
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W], normalised -> five feature maps."""
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps.append(x)
        return maps


class LPIPS:
    """Perceptual distance of two batches of images, [B, C, H, W] x [B, C, H, W] -> [B]; a metric for `CT(metric=...)`.

    Args:
        backbone: normalised images [B, 3, H, W] -> feature maps, [B, C_l, H_l, W_l] each. Its weights are frozen.
        linear: a non-negative weight for each channel of each map, [C_l] each.
        smallest: smaller images are enlarged to this many pixels first, as in CT's code. 0 keeps their size.

    Images are in [-1, 1]; those of one channel are repeated.
    """

    def __init__(
        self, backbone: Callable[[Tensor], Sequence[Tensor]], linear: Sequence[Tensor], smallest: int = 224
    ) -> None:
        if isinstance(backbone, nn.Module):
            backbone.eval().requires_grad_(False)
        self.backbone, self.smallest = backbone, smallest
        self.linear = [weight.detach().reshape(1, -1, 1, 1) for weight in linear]

    @classmethod
    def from_safetensors(cls, path: str | Path, smallest: int = 224) -> "LPIPS":
        """VGG16 and its linear layers from one file.

        Its names are those of torchvision's vgg16 (`features.0.weight` ...) and of the lpips package's linear layers
        (`lin0.model.1.weight` ...).

        Raises:
            ValueError: a weight is missing or has another shape.
        """
        weights = load_file(path)
        backbone = VGG16()
        own = {name: weights[name] for name in backbone.state_dict() if name in weights}
        missing = [name for name in backbone.state_dict() if name not in own]
        missing += [name for i in range(len(VGG16_BLOCKS)) if (name := f"lin{i}.model.1.weight") not in weights]
        if missing:
            raise ValueError(f"{Path(path).name} must hold the weights of VGG16 and LPIPS; {missing[0]} is missing.")
        try:
            backbone.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{Path(path).name} does not hold VGG16: {first_line(error)}") from error
        return cls(backbone, [weights[f"lin{i}.model.1.weight"] for i in range(len(VGG16_BLOCKS))], smallest)

    @classmethod
    def from_package(cls, smallest: int = 224) -> "LPIPS":
        """The VGG16 and linear layers of the installed `lpips` package.

        Raises:
            ImportError: it is not installed.
        """
        import lpips

        model = lpips.LPIPS(net="vgg", verbose=False)
        return cls(model.net, [layer.model[-1].weight for layer in model.lins], smallest)

    def to(self, device: torch.device | str) -> "LPIPS":
        """Move to a device, in place."""
        if isinstance(self.backbone, nn.Module):
            self.backbone.to(device)
        self.linear = [weight.to(device) for weight in self.linear]
        return self

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        maps = zip(self._maps(a), self._maps(b), self.linear)
        return torch.stack([(weight * (x - y).square()).sum(1).mean((1, 2)) for x, y, weight in maps]).sum(0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of unit length along the channels."""
        x = images.expand(-1, 3, -1, -1)
        if x.shape[-1] < self.smallest:
            x = interpolate(x, size=(self.smallest, self.smallest), mode="bilinear", align_corners=False)
        shift, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        return [m / (m.square().sum(1, keepdim=True) + 1e-10).sqrt() for m in self.backbone((x - shift) / scale)]
