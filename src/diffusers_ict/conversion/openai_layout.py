"""Checkpoints of openai/consistency_models: the UNet of guided diffusion, unconditional or class-conditional.

A flat state dict. `input_blocks` and `output_blocks` are numbered through: the first convolution, then for each level
its residual blocks (attention beside them as module 1) and one block that halves, or doubles, the size.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..errors import UserError
from .tensors import checked, length, shown
from .unet_shape import GROUPS, Network, Stages

# Image sizes of the released models, which do not follow from their weights.
SIZES = {(192, 384, 576, 768): 64, (256, 256, 512, 512, 1024, 1024): 256}
HEAD_DIM = 64  # of all of them, and of no other network for certain

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def recognises(checkpoint: dict) -> bool:
    """Whether this is a state dict of that kind."""
    return "time_embed.0.weight" in checkpoint and "input_blocks.0.0.weight" in checkpoint


def read(checkpoint: dict) -> Network:
    """The network of a state dict.

    Raises:
        UserError: it is incomplete, holds something else than tensors of floating point numbers, or is a variant of
            this layout that UNet2DModel cannot express.
    """
    state = checked(checkpoint)
    stages = _read_stages(state)
    config = _read_config(state, stages)
    return Network("a checkpoint of openai/consistency_models", stages, config, _rename(state, stages))


def _read_stages(state: dict[str, Tensor]) -> Stages:
    """The levels, from the names and shapes."""
    inputs, outputs = (_numbers(state, side) for side in ("input_blocks", "output_blocks"))
    # On the way up the last block of every level but the finest holds a module more, which doubles the size.
    found = _resamplers(state, outputs)
    doubling = list(found)
    per_level = doubling[0] + 1 if doubling else outputs
    levels = outputs // per_level if per_level else 0
    if per_level < 2 or inputs != outputs or outputs % per_level or len(doubling) != levels - 1:
        raise UserError(
            f"this checkpoint's levels cannot be separated ({inputs} input blocks, {outputs} output blocks): sizes "
            "must be changed by residual blocks or by learned convolutions (resblock_updown or conv_resample)."
        )
    firsts = [1 + level * per_level for level in range(levels)]
    return Stages(
        widths=tuple(length(state, f"input_blocks.{n}.0.out_layers.3.weight") for n in firsts),
        attends=tuple(f"input_blocks.{n}.1.qkv.weight" in state for n in firsts),
        layers=per_level - 1,
        resnet_resampling=bool(doubling) and found[doubling[0]][1] == "resnet",
    )


def _read_config(state: dict[str, Tensor], stages: Stages) -> dict[str, Any]:
    """Arguments of UNet2DModel; image size and size of the attention heads only for a released network."""
    if any(state[key].shape[-1] != 1 for key in state if key.endswith("skip_connection.weight")):
        raise UserError("this checkpoint has shortcuts of 3x3 convolutions, which a UNet2DModel does not have.")
    first, classes = "input_blocks.1.0.", "label_emb.weight"
    twice = length(state, first + "emb_layers.1.weight") == 2 * length(state, first + "out_layers.0.weight")
    released = {"sample_size": SIZES.get(stages.widths), "attention_head_dim": HEAD_DIM}
    return {
        **stages.config(),
        "in_channels": length(state, "input_blocks.0.0.weight", 1),
        "out_channels": length(state, "out.2.weight"),
        "num_class_embeds": length(state, classes) if classes in state else None,
        "resnet_time_scale_shift": "scale_shift" if twice else "default",
        # Without it, UNet2DModel omits the norm of the middle attention when time scales and shifts.
        "attn_norm_num_groups": GROUPS,
        **(released if stages.widths in SIZES else {}),
    }


def _rename(state: dict[str, Tensor], stages: Stages) -> dict[str, Tensor]:
    """The same weights by UNet2DModel's names."""
    modules = {**ENDS, **dict(_modules(state, stages))}
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        if module.endswith(".qkv") and (parent := modules.get(module.removesuffix(".qkv"))):
            # Convolutions of one pixel there, linear layers here.
            for name, part in zip("qkv", tensor.chunk(3)):
                out[f"{parent}.to_{name}.{kind}"] = part.reshape(len(part), -1) if kind == "weight" else part
        elif module.endswith(".proj_out") and (parent := modules.get(module.removesuffix(".proj_out"))):
            out[f"{parent}.to_out.0.{kind}"] = tensor.reshape(len(tensor), -1) if kind == "weight" else tensor
        elif module in modules:
            out[f"{modules[module]}.{kind}"] = tensor
        else:
            raise UserError(f"this checkpoint holds {shown(key)}, which has no place in a UNet2DModel.")
    return out


def _modules(state: dict[str, Tensor], stages: Stages) -> Iterator[tuple[str, str]]:
    """(old name, new name) of every module inside the blocks."""
    levels, layers = len(stages.widths), stages.layers
    found = _resamplers(state, _numbers(state, "output_blocks"))
    for level in range(levels):
        new = f"down_blocks.{level}"
        for layer in range(layers):
            yield from _pair(f"input_blocks.{1 + level * (layers + 1) + layer}", new, layer)
        if level < levels - 1:
            old = f"input_blocks.{(level + 1) * (layers + 1)}.0"
            yield from _resampling(old, f"{new}.downsamplers.0", "op", stages.resnet_resampling)
        new = f"up_blocks.{level}"
        for layer in range(layers + 1):
            yield from _pair(f"output_blocks.{level * (layers + 1) + layer}", new, layer)
        if level < levels - 1:
            number = (level + 1) * (layers + 1) - 1
            place, _ = found[number]
            old = f"output_blocks.{number}.{place}"
            yield from _resampling(old, f"{new}.upsamplers.0", "conv", stages.resnet_resampling)
    for number in (0, 2):
        yield from _resnet(f"middle_block.{number}", f"mid_block.resnets.{number // 2}")
    yield from _attention("middle_block.1", "mid_block.attentions.0")


def _pair(old: str, new: str, layer: int) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{old}.0", f"{new}.resnets.{layer}")
    yield from _attention(f"{old}.1", f"{new}.attentions.{layer}")


def _resnet(old: str, new: str) -> Iterator[tuple[str, str]]:
    for theirs, ours in RESNET.items():
        yield f"{old}.{theirs}", f"{new}.{ours}"


def _attention(old: str, new: str) -> Iterator[tuple[str, str]]:
    yield old, new  # parent of qkv and proj_out
    yield f"{old}.norm", f"{new}.group_norm"


def _resampling(old: str, new: str, convolution: str, by_resnet: bool) -> Iterator[tuple[str, str]]:
    if by_resnet:
        yield from _resnet(old, new)
    else:
        yield f"{old}.{convolution}", f"{new}.conv"


def _numbers(state: dict[str, Tensor], side: str) -> int:
    """How many blocks there are that have weights."""
    return len({key.split(".")[1] for key in state if key.startswith(side + ".")})


def _resamplers(state: dict[str, Tensor], blocks: int) -> dict[int, tuple[int, str]]:
    """(place in the block, "resnet" or "conv") of the module that doubles the size, by number of output block."""
    pattern = re.compile(r"output_blocks\.(\d+)\.([12])\.(in_layers\.0|conv)\.weight")
    matches = [match for match in map(pattern.fullmatch, state) if match]
    found = {int(m[1]): (int(m[2]), "conv" if m[3] == "conv" else "resnet") for m in matches}
    return {number: found[number] for number in range(blocks) if number in found}
