"""Checkpoints of openai/consistency_models: the UNet of guided diffusion, unconditional or class-conditional.

A flat state dict. `input_blocks` and `output_blocks` are numbered through: the first convolution, then for each level
its residual blocks (attention beside them as module 1) and one block that halves, or doubles, the size. The noise
levels that the authors sample with are not in these files: they are known by the released names.
"""

import re
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import UserError
from ..formulas.noise_schedule import karras_sigmas
from .checkpoint import check_tensors, length, shown
from .unet_shape import GROUPS, Network, stage_config

# Image sizes of the released models, which do not follow from their weights.
SIZES = {(192, 384, 576, 768): 64, (256, 256, 512, 512, 1024, 1024): 256}
HEAD_DIM = 64  # of all of them, and of no other network for certain

# Names of UNet2DModel for modules outside the blocks, in residual and resampling blocks, and in attention.
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
RESAMPLING = {**RESNET, "op": "conv", "conv": "conv"}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}

BLOCK = re.compile(r"(input|output)_blocks\.(\d{1,4})\.(\d)\.(.+)")
MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")
DOUBLING = re.compile(r"output_blocks\.(\d{1,4})\.[12]\.(in_layers\.0|conv)\.weight")

# --steps and --ts of the sampling commands in scripts/launch.sh: levels of the Karras grid (rho 7), and the index of
# the second step, counted from sigma_max down. "CD on LSUN-256" stands there for both data sets.
TWO_STEPS = {
    "ct_imagenet64": (201, 106),
    "ct_bedroom256": (151, 67),
    "ct_cat256": (151, 62),
    "cd_imagenet64_l2": (40, 22),
    "cd_imagenet64_lpips": (40, 22),
    "cd_imagenet64": (40, 22),
    "cd_bedroom256_l2": (40, 18),
    "cd_bedroom256_lpips": (40, 17),
    "cd_cat256_l2": (40, 18),
    "cd_cat256_lpips": (40, 17),
}


class Published(NamedTuple):
    """How the authors of a released network draw images in two steps.

    Attributes:
        name: of the file; num_levels: of the Karras grid; index: of the second step in it, from sigma_max down.
        second_sigma: the level of the second step, to four digits.
    """

    name: str
    num_levels: int
    index: int
    second_sigma: float


def published(file_name: str) -> Published | None:
    """What was published of the network of this file, recognised by its name, such as ct_imagenet64.pt."""
    name = next((name for name in TWO_STEPS if _has_word(file_name, name)), None)
    if name is None:
        return None
    num_levels, index = TWO_STEPS[name]
    return Published(name, num_levels, index, float(f"{karras_sigmas(num_levels).flip(0)[index]:.4g}"))


def is_edm(file_name: str) -> bool:
    """Whether the name, such as edm_imagenet64_ema.pt, is that of one of the diffusion models among these networks."""
    return _has_word(file_name, "edm")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", text, re.I) is not None


def recognises(checkpoint: dict) -> bool:
    """Whether this is a state dict of that kind."""
    return "time_embed.0.weight" in checkpoint and "input_blocks.0.0.weight" in checkpoint


def read(checkpoint: dict) -> Network:
    """The network of a state dict.

    Raises:
        UserError: it is incomplete, holds something else than tensors of floating point numbers, or is a variant of
            this layout that UNet2DModel cannot express.
    """
    state = check_tensors(checkpoint)
    config = _read_config(state)
    weights = _rename(state, len(config["block_out_channels"]), config["layers_per_block"])
    return Network("a checkpoint of openai/consistency_models", config, weights)


def _read_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of UNet2DModel; image size and size of the attention heads only for a released network."""
    stages = _read_stages(state)
    if any(state[key].shape[-1] != 1 for key in state if key.endswith("skip_connection.weight")):
        raise UserError("this checkpoint has shortcuts of 3x3 convolutions, which a UNet2DModel does not have.")
    first, classes, widths = "input_blocks.1.0.", "label_emb.weight", stages["block_out_channels"]
    twice = length(state, first + "emb_layers.1.weight") == 2 * length(state, first + "out_layers.0.weight")
    return {
        **stages,
        "in_channels": length(state, "input_blocks.0.0.weight", 1),
        "out_channels": length(state, "out.2.weight"),
        "num_class_embeds": length(state, classes) if classes in state else None,
        "resnet_time_scale_shift": "scale_shift" if twice else "default",
        # Without it, UNet2DModel omits the norm of the middle attention when time scales and shifts.
        "attn_norm_num_groups": GROUPS,
        **({"sample_size": SIZES[widths], "attention_head_dim": HEAD_DIM} if widths in SIZES else {}),
    }


def _read_stages(state: dict[str, Tensor]) -> dict[str, Any]:
    """The levels, from the names and shapes."""
    inputs, outputs = (
        len({key.split(".")[1] for key in state if key.startswith(f"{side}_blocks.")}) for side in ("input", "output")
    )
    # On the way up the last block of every level but the finest holds a module more, which doubles the size.
    doubling = {int(match[1]): match[2] for match in map(DOUBLING.fullmatch, state) if match}
    per_level = min(doubling, default=outputs - 1) + 1
    levels = outputs // per_level if per_level else 0
    if (
        per_level < 2
        or inputs != outputs
        or outputs % per_level
        or sorted(doubling) != list(range(per_level - 1, outputs - 1, per_level))
    ):
        raise UserError(
            f"this checkpoint's levels cannot be separated ({inputs} input blocks, {outputs} output blocks): sizes "
            "must be changed by residual blocks or by learned convolutions (resblock_updown or conv_resample)."
        )
    firsts = [1 + level * per_level for level in range(levels)]
    return stage_config(
        widths=[length(state, f"input_blocks.{n}.0.out_layers.3.weight") for n in firsts],
        attends=[f"input_blocks.{n}.1.qkv.weight" in state for n in firsts],
        layers=per_level - 1,
        resnet_resampling="in_layers.0" in doubling.values(),
    )


def _rename(state: dict[str, Tensor], levels: int, layers: int) -> dict[str, Tensor]:
    """The same weights by UNet2DModel's names.

    Raises:
        UserError: a tensor has no place there.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        new = f"{_new_name(module, levels, layers)}.{kind}"
        # Attention has convolutions of one pixel there, and linear layers here.
        if new.endswith((".to_qkv.weight", ".to_out.0.weight")):
            tensor = tensor.reshape(len(tensor), -1)
        parts = dict(zip("qkv", tensor.chunk(3))) if ".to_qkv." in new else {"": tensor}
        for letter, part in parts.items():
            name = new.replace("to_qkv", f"to_{letter}")
            if name.startswith("None.") or name in renamed:
                raise UserError(f"this checkpoint holds {shown(key)}, which has no place in a UNet2DModel.")
            renamed[name] = part
    return renamed


def _new_name(module: str, levels: int, layers: int) -> str | None:
    """UNet2DModel's name of a module, or None where it has no such module."""
    if match := MIDDLE.fullmatch(module):
        place, name = int(match[1]), match[2]
        block, names = ("attentions.0", ATTENTION) if place == 1 else (f"resnets.{place // 2}", RESNET)
        return f"mid_block.{block}.{names[name]}" if name in names else None
    match = BLOCK.fullmatch(module)
    if match is None or module in ENDS:
        return ENDS.get(module)
    side, place, name = match[1], int(match[3]), match[4]
    first = 1 if side == "input" else 0  # input block 0 is the first convolution
    level, layer = divmod(int(match[2]) - first, layers + 1)
    direction = "down" if side == "input" else "up"
    if level not in range(levels):
        return None
    if place == 1 and name in ATTENTION:
        block, names = f"attentions.{layer}", ATTENTION
    elif place in (1, 2) if side == "output" else (place == 0 and layer == layers):
        block, names = f"{direction}samplers.0", RESAMPLING
    elif place == 0:
        block, names = f"resnets.{layer}", RESNET
    else:
        return None
    return f"{direction}_blocks.{level}.{block}.{names[name]}" if name in names else None
