"""Checkpoints that the authors of ACT released (arXiv:2311.14097): a training state around a diffusers UNet.

Two things in them are not what a stock consistency pipeline expects. The CIFAR-10 network computes six channels, of
which its forward pass returns the last three. And all three networks take the noise level sigma itself, not
250 ln(sigma): see `time_refit`.
"""

from typing import Any

from torch import Tensor

from ..errors import UserError
from .checkpoint import check_tensors, length

ORIGIN = "a checkpoint of the ACT release"
# The averaged weights, which the authors sample from.
PREFIX = "model_ema.unet."
# Settings of the three released networks that do not follow from their weights, by their widths.
RELEASES: dict[tuple[int, ...], dict[str, Any]] = {
    (128, 128, 256, 256): {"sample_size": 32, "attention_head_dim": 8},
    (128, 256, 256, 512, 512): {"sample_size": 64, "attention_head_dim": 16},
    (128, 128, 256, 256, 512, 512): {
        "sample_size": 256,
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}
CHANNELS = 3


def recognises(checkpoint: dict) -> bool:
    """Whether this is such a training state."""
    state = checkpoint.get("state_dict")
    return isinstance(state, dict) and any(str(key).startswith(PREFIX) for key in state)


def read(checkpoint: dict) -> tuple[dict[str, Tensor], list[str]]:
    """(weights by UNet2DModel's names, what was done) of the averaged network of a training state, or a UserError."""
    averaged = {key: value for key, value in checkpoint["state_dict"].items() if str(key).startswith(PREFIX)}
    state = check_tensors({key.removeprefix(PREFIX).removeprefix("_orig_mod."): averaged[key] for key in averaged})
    if "conv_out.weight" not in state:
        raise UserError("this checkpoint's averaged network has no conv_out: it is not the generator of an ACT run.")
    notes = []
    if length(state, "conv_out.weight") == 2 * CHANNELS:
        state |= {name: state[name][CHANNELS:] for name in ("conv_out.weight", "conv_out.bias") if name in state}
        notes.append(
            f"The last layer of this network computes {2 * CHANNELS} channels. The last {CHANNELS} of them, which are "
            f"the image, were kept, as the authors' forward pass does; the first {CHANNELS} were dropped."
        )
    return state, notes
