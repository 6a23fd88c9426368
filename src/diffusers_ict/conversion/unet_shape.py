"""The configuration of a UNet, read off the shapes of its weights, as arguments of diffusers' UNet2DModel."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import UserError
from .checkpoint import length, shown

GROUPS = 32  # of all group norms
UNKNOWN = {  # what weights do not tell
    "sample_size": "`resolution`, the side of its images in pixels",
    "attention_head_dim": "`attention_head_dim`, the channels of one attention head (num_head_channels of its "
    "training, or the width of a level with attention divided by its num_heads)",
}


def read_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of UNet2DModel that follow from its weights, or a UserError."""

    def count(modules: str) -> int:
        return len({name.split(".")[modules.count(".")] for name in state if name.startswith(modules)})

    levels = range(count("down_blocks."))
    if not levels:
        raise UserError("this checkpoint is incomplete: it has no down_blocks.")
    widths = tuple(length(state, f"down_blocks.{level}.resnets.0.conv2.weight") for level in levels)
    attends = [count(f"down_blocks.{level}.attentions.") > 0 for level in levels]
    time_scales = length(state, "down_blocks.0.resnets.0.time_emb_proj.weight") == 2 * widths[0]
    down, up, resampling = "DownBlock2D", "UpBlock2D", "conv"
    if "down_blocks.0.downsamplers.0.conv1.weight" in state:
        down, up, resampling = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "resnet"
    classes = "class_embedding.weight"
    return {
        "block_out_channels": widths,
        "layers_per_block": count("down_blocks.0.resnets."),
        "down_block_types": tuple("AttnDownBlock2D" if attend else down for attend in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attend else up for attend in reversed(attends)),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "in_channels": length(state, "conv_in.weight", 1),
        "out_channels": length(state, "conv_out.weight"),
        "num_class_embeds": length(state, classes) if classes in state else None,
        "resnet_time_scale_shift": "scale_shift" if time_scales else "default",
        # Without it, UNet2DModel omits the norm of the middle attention when time scales and shifts.
        "attn_norm_num_groups": GROUPS,
    }


def complete(config: Mapping[str, Any], name: str, resolution: int | None, head_dim: int | None) -> dict[str, Any]:
    """A network's configuration with what its weights do not tell: its image size and that of its attention heads.

    Args:
        config: those of a released network are in it; name: of the file.
        resolution, head_dim: those the user gives, or None.

    Raises:
        UserError: something is missing, or does not fit the network.
    """
    options = {"sample_size": resolution, "attention_head_dim": head_dim}
    config = {**config, **{key: value for key, value in options.items() if value is not None}}
    if missing := [text for key, text in UNKNOWN.items() if key not in config]:
        raise UserError(
            f"{name} is none of the released networks, and its weights do not tell everything: give "
            f"{' and '.join(missing)}."
        )
    widths, size, head_dim = (config[key] for key in ("block_out_channels", "sample_size", "attention_head_dim"))
    factor = 2 ** (len(widths) - 1)
    if size < 1 or size % factor:
        raise UserError(
            f"`resolution` must be a positive multiple of {factor}, by which this network divides the side of its "
            f"images, got {size}."
        )
    attends = {width for width, block in zip(widths, config["down_block_types"]) if "Attn" in block}
    for width in sorted({*attends, widths[-1]}):  # the middle attends, too
        if head_dim is not None and (head_dim < 1 or width % head_dim):
            raise UserError(f"`attention_head_dim` must divide {width}, the width of a level, got {head_dim}.")
    return config


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UNet2DModel:
    """A UNet2DModel in eval mode with exactly these weights, in float32 and in memory of its own, or a UserError."""
    # Weights of a file may share memory, or be a part of it.
    copies = {
        name: weights.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, weights in state.items()
    }
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**config)
        unet.load_state_dict(copies, assign=True)
    except Exception as error:  # diffusers checks its arguments in many ways, and PyTorch lists every mismatch
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"this checkpoint does not have the shape of a UNet2DModel: {shown(reason, 300)}") from error
    return unet.requires_grad_(True).eval()
