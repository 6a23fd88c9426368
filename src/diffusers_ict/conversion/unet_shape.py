"""The configuration of a UNet, read off the shapes of its weights, as arguments of diffusers' UNet2DModel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import UserError, first_line
from .checkpoint import shown

GROUPS = 32  # of the group norms of every layout


@dataclass(frozen=True)
class Network:
    """What a file says about a UNet.

    Attributes:
        origin: the kind of file; config: arguments of UNet2DModel; state: the weights by UNet2DModel's names.
        notes: what was done, for the network's user.
    """

    origin: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def stage_config(
    widths: Sequence[int], attends: Sequence[bool], layers: int, resnet_resampling: bool = False
) -> dict[str, Any]:
    """The levels of a UNet as arguments of UNet2DModel.

    Args:
        widths: channels of each level, from fine to coarse; attends: whether it has attention.
        layers: residual blocks of each level on the way down.
        resnet_resampling: sizes are changed by residual blocks, and not by convolutions.
    """
    down, up, resampling = "DownBlock2D", "UpBlock2D", "conv"
    if resnet_resampling:
        down, up, resampling = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "resnet"
    return {
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if attend else down for attend in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attend else up for attend in reversed(attends)),
        "downsample_type": resampling,
        "upsample_type": resampling,
    }


def check_config(config: Mapping[str, Any]) -> None:
    """Check what the weights do not tell, `sample_size` and `attention_head_dim`, against what they do.

    Raises:
        UserError: widths that group norms cannot divide; an image size that cannot be halved often enough; heads that
            do not divide the width of a level with attention. The coarsest level always has attention.
    """
    widths, size, head_dim = (config[key] for key in ("block_out_channels", "sample_size", "attention_head_dim"))
    if odd := [width for width in widths if width % GROUPS]:
        raise UserError(
            f"the widths of a network's levels must be multiples of {GROUPS}, which group norms divide them by, "
            f"got {odd[0]}."
        )
    factor = 2 ** (len(widths) - 1)
    if size < 1 or size % factor:
        raise UserError(
            f"`resolution` must be a positive multiple of {factor}, by which this network divides the side of its "
            f"images, got {size}."
        )
    attends = ["Attn" in block for block in config["down_block_types"][:-1]] + [True]
    for width in sorted({width for width, attend in zip(widths, attends) if attend}):
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
    expected, actual = (
        {name: tuple(weights.shape) for name, weights in weights_of.items()}
        for weights_of in (unet.state_dict(), state)
    )
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise UserError(
                f"this checkpoint does not have the shape of a UNet2DModel: {shown(name)} should be "
                f"{expected.get(name, 'absent')} and is {actual.get(name, 'absent')}."
            )
    # Weights of a file may share memory, or be a part of it.
    copies = {
        name: weights.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, weights in state.items()
    }
    unet.load_state_dict(copies, assign=True)
    return unet.requires_grad_(True).eval()
