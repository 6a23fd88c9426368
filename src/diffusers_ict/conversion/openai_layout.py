"""Checkpoints of openai/consistency_models: the UNet of guided diffusion, unconditional or class-conditional.

A flat state dict. `input_blocks` and `output_blocks` are numbered through: the first convolution, then for each level
its residual blocks (attention beside them as module 1) and one block that halves, or doubles, the size. The noise
levels that the authors sample with are not in these files: they are known by the released names.
"""

import re

from torch import Tensor

from ..errors import UserError
from .checkpoint import check_tensors, shown

ORIGIN = "a checkpoint of openai/consistency_models"
# Settings of the released networks that do not follow from their weights, by their widths.
RELEASES = {
    (192, 384, 576, 768): {"sample_size": 64, "attention_head_dim": 64},
    (256, 256, 512, 512, 1024, 1024): {"sample_size": 256, "attention_head_dim": 64},
}

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

DOUBLING = re.compile(r"output_blocks\.(\d{1,4})\.[12]\.(?:in_layers\.0|conv)\.weight")

# The sampling commands in scripts/launch.sh: levels of the Karras grid (rho 7), index of the second step, counted from
# sigma_max down, and its level to four digits. "CD on LSUN-256" stands there for both data sets.
TWO_STEPS = {
    "ct_imagenet64": (201, 106, 1.913),
    "ct_bedroom256": (151, 67, 3.991),
    "ct_cat256": (151, 62, 5.249),
    "cd_imagenet64_l2": (40, 22, 1.382),
    "cd_imagenet64_lpips": (40, 22, 1.382),
    "cd_imagenet64": (40, 22, 1.382),
    "cd_bedroom256_l2": (40, 18, 3.52),
    "cd_bedroom256_lpips": (40, 17, 4.366),
    "cd_cat256_l2": (40, 18, 3.52),
    "cd_cat256_lpips": (40, 17, 4.366),
}


def released_name(file_name: str) -> str | None:
    """The released network with published levels whose name this file bears, such as ct_imagenet64.pt."""
    return next((name for name in TWO_STEPS if _has_word(file_name, name)), None)


def is_edm(file_name: str) -> bool:
    """Whether the name, such as edm_imagenet64_ema.pt, is that of one of the diffusion models among these networks."""
    return _has_word(file_name, "edm")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", text, re.I) is not None


def recognises(checkpoint: dict) -> bool:
    """Whether this is such a state dict."""
    return "time_embed.0.weight" in checkpoint and "input_blocks.0.0.weight" in checkpoint


def read(checkpoint: dict) -> tuple[dict[str, Tensor], list[str]]:
    """(weights by UNet2DModel's names, what was done) of a state dict, or a UserError."""
    state = check_tensors(checkpoint)
    names, weights = _module_names(*_count(state)), dict[str, Tensor]()
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        new = f"{names.get(module)}.{kind}"
        # Attention has convolutions of one pixel there, and linear layers here.
        if new.endswith((".to_qkv.weight", ".to_out.0.weight")):
            tensor = tensor.reshape(len(tensor), -1)
        parts = dict(zip("qkv", tensor.chunk(3))) if ".to_qkv." in new else {"qkv": tensor}
        for letter, part in parts.items():
            name = new.replace("to_qkv", f"to_{letter}")
            if module not in names or name in weights:
                raise UserError(f"this checkpoint holds {shown(key)}, which has no place in a UNet2DModel.")
            weights[name] = part
    return weights, []


def _count(state: dict[str, Tensor]) -> tuple[int, int]:
    """(levels, residual blocks of each level on the way down)."""
    inputs, outputs = (
        len({key.split(".")[1] for key in state if key.startswith(side)})
        for side in ("input_blocks.", "output_blocks.")
    )
    # On the way up the last block of every level but the finest holds a module more, which doubles the size.
    doubling = sorted(int(match[1]) for match in map(DOUBLING.fullmatch, state) if match)
    per_level = doubling[0] + 1 if doubling else outputs
    lasts = list(range(per_level - 1, outputs - 1, max(per_level, 1)))
    if per_level < 2 or inputs != outputs or outputs % per_level or doubling != lasts:
        raise UserError(
            f"this checkpoint's levels cannot be separated ({inputs} input blocks, {outputs} output blocks): sizes "
            "must be changed by residual blocks or by learned convolutions (resblock_updown or conv_resample)."
        )
    return outputs // per_level, per_level - 1


def _module_names(levels: int, layers: int) -> dict[str, str]:
    """UNet2DModel's names of the modules."""
    names = dict(ENDS)

    def put(old: str, new: str, parts: dict[str, str]) -> None:
        names.update({f"{old}.{there}": f"{new}.{here}" for there, here in parts.items()})

    for number in range(levels * (layers + 1)):
        level, layer = divmod(number, layers + 1)
        down, up = f"input_blocks.{number + 1}", f"output_blocks.{number}"
        if layer < layers:
            put(f"{down}.0", f"down_blocks.{level}.resnets.{layer}", RESNET)
            put(f"{down}.1", f"down_blocks.{level}.attentions.{layer}", ATTENTION)
        else:
            put(f"{down}.0", f"down_blocks.{level}.downsamplers.0", RESAMPLING)
        put(f"{up}.0", f"up_blocks.{level}.resnets.{layer}", RESNET)
        put(f"{up}.1", f"up_blocks.{level}.attentions.{layer}", ATTENTION)
        for place in (1, 2):
            put(f"{up}.{place}", f"up_blocks.{level}.upsamplers.0", RESAMPLING)
    put("middle_block.0", "mid_block.resnets.0", RESNET)
    put("middle_block.1", "mid_block.attentions.0", ATTENTION)
    put("middle_block.2", "mid_block.resnets.1", RESNET)
    return names
