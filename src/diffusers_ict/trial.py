"""Networks are tried before they are used: built without memory, and called once."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from .errors import UserError, foreign_line

LARGEST = {  # what no network of this kind has; building more would take minutes
    "sample_size": 1 << 14,
    "layers_per_block": 64,
    "block_out_channels": 1 << 16,
    "in_channels": 1 << 12,
    "out_channels": 1 << 12,
    "num_class_embeds": 10**7,
}
MOST_LEVELS = 16


def check_config(kind: type[ModelMixin], config: Mapping[str, Any], name: str) -> None:
    """Build a network of images and noise levels from its config on the meta device, and call it once.

    Args:
        kind: its class, such as UNet2DModel; name: what messages call it.

    Raises:
        UserError: a size that no such network has, a config that cannot be built or called, or whose class labels are
            no numbers.
    """
    for key, largest in LARGEST.items():
        values = config.get(key)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if value is not None and not (type(value) is int and 1 <= value <= largest):
                raise UserError(f"{key} of {name} must be an integer from 1 to {largest}, got {value!r}.")
    levels = config.get("block_out_channels", ())
    if not isinstance(levels, (list, tuple)) or len(levels) > MOST_LEVELS:
        raise UserError(f"block_out_channels of {name} must be a list of at most {MOST_LEVELS} widths, got {levels!r}.")
    if (embedded := config.get("class_embed_type")) is not None:
        raise UserError(
            f"class_embed_type of {name} must be left out, because classes are numbers here, got {embedded!r}; give "
            "num_class_embeds instead."
        )
    try:
        with torch.device("meta"), torch.no_grad():
            network = kind.from_config(dict(config)).eval()
            size = network.config.sample_size or 2 ** len(levels)
            sides = size if isinstance(size, (list, tuple)) else (size, size)
            x = torch.empty(1, network.config.in_channels, *sides)
            labels = torch.zeros(1, dtype=torch.int64) if network.config.num_class_embeds else None
            network(x, torch.ones(1), class_labels=labels)
    except Exception as error:  # diffusers and PyTorch check their arguments in many ways
        raise UserError(f"the config of {name} cannot be used: {foreign_line(error)}") from error


def check_call(
    network: nn.Module, shape: tuple[int, int, int], num_classes: int | None, condition_channels: int = 0
) -> None:
    """Call a network once as training does, with two images (C, H, W) of zeros. Its mode is as it was before.

    Args:
        condition_channels: that it takes behind those of the images.

    Raises:
        UserError: it cannot be called so, or does not return images of the same shape.
    """
    parameter = next(network.parameters(), torch.empty(0))
    channels, *sides = shape
    x = torch.zeros(2, channels + condition_channels, *sides, device=parameter.device)
    labels = torch.zeros(2, dtype=torch.int64, device=x.device) if num_classes else None
    training = network.training
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            out = network.eval()(x, torch.zeros(2, device=x.device), class_labels=labels, return_dict=False)[0]
    except Exception as error:  # of somebody else's code
        raise UserError(
            f"the model must take model(x, timesteps, class_labels=..., return_dict=False) with x {list(x.shape)} and "
            f"timesteps [2], and raises {type(error).__name__}: {foreign_line(error)}"
        ) from error
    finally:
        network.train(training)
    if not isinstance(out, torch.Tensor) or out.shape != (2, *shape):
        got = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UserError(f"the model must return a tuple that begins with images {[2, *shape]}, got {got}.")
