"""The configuration of a UNet, read off the shapes of its weights, as arguments of diffusers' UNet2DModel."""

from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Stages:
    """The levels of a UNet from fine to coarse.

    Attributes:
        widths: channels of each level; attends: whether it has attention.
        layers: residual blocks of each level on the way down.
        resnet_resampling: sizes are changed by residual blocks, and not by convolutions.
    """

    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    layers: int
    resnet_resampling: bool = False

    def config(self) -> dict:
        """These levels as arguments of UNet2DModel."""
        down = "ResnetDownsampleBlock2D" if self.resnet_resampling else "DownBlock2D"
        up = "ResnetUpsampleBlock2D" if self.resnet_resampling else "UpBlock2D"
        resampling = "resnet" if self.resnet_resampling else "conv"
        return {
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "down_block_types": tuple("AttnDownBlock2D" if a else down for a in self.attends),
            "up_block_types": tuple("AttnUpBlock2D" if a else up for a in reversed(self.attends)),
            "downsample_type": resampling,
            "upsample_type": resampling,
        }


def build(config: dict, state: dict[str, Tensor]) -> UNet2DModel:
    """A UNet2DModel in eval mode with exactly these weights, in float32.

    Raises:
        UserError: a tensor is missing, is left over, or has another shape than the configuration says.
    """
    with torch.device("meta"):
        unet = UNet2DModel(**config)
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"this checkpoint does not have the shape of a UNet2DModel: {name} should be "
                f"{expected.get(name, 'absent')} and is {given.get(name, 'absent')}."
            )
    unet.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return unet.requires_grad_(True).eval()


def check_heads(stages: Stages, head_dim: int | None) -> None:
    """Check that attention can be split into heads of this size.

    Raises:
        UserError: a level with attention has a width that is no multiple of it.
    """
    for width in {w for w, a in zip(stages.widths, stages.attends) if a} | {stages.widths[-1]}:
        if head_dim is not None and (head_dim < 1 or width % head_dim):
            raise UserError(f"`attention_head_dim` must divide {width}, the width of a level, got {head_dim}.")
