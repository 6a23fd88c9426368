"""The configuration of a UNet, read off the shapes of its weights, as arguments of diffusers' UNet2DModel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import UserError, first_line
from .tensors import shown

GROUPS = 32  # of the group norms of every layout


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


@dataclass(frozen=True)
class Network:
    """What a file says about a UNet.

    Attributes:
        origin: the kind of file; stages: the levels of the network.
        config: arguments of UNet2DModel; state: its weights by its names.
        notes: what was done, for the network's user.
    """

    origin: str
    stages: Stages
    config: dict[str, Any]
    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def check(stages: Stages, config: Mapping[str, Any]) -> None:
    """Check what the weights do not tell, `sample_size` and `attention_head_dim`, against what they do.

    Raises:
        UserError: widths that group norms cannot divide; an image size that cannot be halved often enough; heads that
            do not divide the width of a level with attention. The coarsest level always has attention.
    """
    for width in stages.widths:
        if width % GROUPS:
            raise UserError(
                f"the widths of a network's levels must be multiples of {GROUPS}, which group norms divide them by, "
                f"got {width}."
            )
    factor, size = 2 ** (len(stages.widths) - 1), config["sample_size"]
    if size < 1 or size % factor:
        raise UserError(
            f"`resolution` must be a positive multiple of {factor}, by which this network divides the side of its "
            f"images, got {size}."
        )
    head_dim = config["attention_head_dim"]
    for width in sorted({w for w, a in zip(stages.widths, stages.attends) if a} | {stages.widths[-1]}):
        if head_dim is not None and (head_dim < 1 or width % head_dim):
            raise UserError(f"`attention_head_dim` must divide {width}, the width of a level, got {head_dim}.")


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UNet2DModel:
    """A UNet2DModel in eval mode with exactly these weights, in float32 and in memory of its own.

    Raises:
        UserError: a tensor is missing, is left over, or has another shape than the configuration says.
    """
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**config)
    except Exception as error:  # diffusers checks its arguments in many ways
        raise UserError(f"this checkpoint does not describe a UNet2DModel: {first_line(error)}") from error
    expected = {name: tuple(weights.shape) for name, weights in unet.state_dict().items()}
    given = {name: tuple(weights.shape) for name, weights in state.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"this checkpoint does not have the shape of a UNet2DModel: {shown(name)} should be "
                f"{expected.get(name, 'absent')} and is {given.get(name, 'absent')}."
            )
    # Weights of a file may share memory, or be a part of it.
    own = {
        name: weights.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, weights in state.items()
    }
    unet.load_state_dict(own, assign=True)
    return unet.requires_grad_(True).eval()
