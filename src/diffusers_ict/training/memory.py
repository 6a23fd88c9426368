"""How much memory a training process takes on its device, part by part, before anything is there."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..discriminator import ConsistencyDiscriminator
from ..objectives.act import discriminator_logits, discriminator_loss, generator_loss, r1_penalty

CARDS = (8, 24, 80, 141)  # GB of the GPUs that people have
# For what only lives inside an operation: gradients of activations, and the workspace of convolutions. Measured peaks
# are up to 14 % above the parts (benchmarks/results/step_speed_h200.md).
MARGIN = 1.2
CONTEXT = 500_000_000  # what CUDA and its libraries take for themselves
COUNTED = 2  # images of the micro batch whose activations are counted


@dataclass(frozen=True)
class Memory:
    """Bytes of a training process.

    Attributes:
        fixed: by what they are for, whatever the micro batch.
        per_image: activations of each image of the micro batch.
        data: the decoded images, which lie on the device if they take no more than half of it.
    """

    fixed: dict[str, int]
    per_image: int
    data: int = 0

    def total(self, micro_batch: int, room: float = math.inf) -> int:
        """With the margin, on a device with so much room."""
        held = self.data if self.data <= room / 2 else 0
        return int(MARGIN * (sum(self.fixed.values()) + self.per_image * micro_batch)) + held

    def batch_on(self, gigabytes: int, images: int) -> int | None:
        """The largest micro batch on a card of so many GB that divides the images of a process's step."""
        fitting = (n for n in range(images, 0, -1) if images % n == 0)
        room = gigabytes * 10**9 - CONTEXT
        return next((n for n in fitting if self.total(n, room) <= room), None)


def memory_of(
    unet: UNet2DModel,
    discriminator: ConsistencyDiscriminator | None,
    *,
    averages: int,
    teacher: bool,
    half: bool,
    fakes: float = 1.0,
    data: int = 0,
) -> Memory:
    """What a run takes, without LPIPS, and without what `torch_compile` and `gradient_checkpointing` save.

    Args:
        averages: number of EMAs.
        teacher: whether CT's teacher is kept.
        half: whether the networks compute in half precision.
        fakes: of the discriminator's micro batch, for each image of the generator's.
        data: bytes of the images.
    """
    size = 4 * _count(unet)
    fixed = {"weights": size, "gradients": size, "moments": 2 * size, "averages": averages * size}
    fixed |= {"samples": size, "teacher": size if teacher else 0, "half": size // 2 if half else 0}
    config = None
    if discriminator is not None:
        own = 4 * _count(discriminator)
        fixed |= {"discriminator": 4 * own + (own // 2 if half else 0)}
        config = _as_json(discriminator)
    generator, critic = activation_bytes(_as_json(unet), config, half)
    return Memory(fixed, max(generator, int(fakes * critic)), data)


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _as_json(net: Any) -> str:
    return json.dumps(dict(net.config), sort_keys=True, default=str)


@lru_cache
def activation_bytes(unet_config: str, discriminator_config: str | None, half: bool) -> tuple[int, int]:
    """Bytes that one image keeps for the backward pass: (of the generator's step, of the discriminator's), or 0.

    Counted, not computed: the networks run on tensors without data. A gradient penalty is part of the discriminator's.

    Args:
        unet_config, discriminator_config: as JSON.
    """
    with FakeTensorMode():
        unet = UNet2DModel.from_config(json.loads(unet_config)).train()
        config = unet.config
        x = torch.empty(COUNTED, config["in_channels"], config["sample_size"], config["sample_size"])
        sigma = torch.ones(COUNTED)
        labels = torch.zeros(COUNTED, dtype=torch.int64) if config.get("num_class_embeds") else None
        if discriminator_config is None:
            return _kept(lambda: unet(x, sigma, labels).sample, [unet], half), 0
        critic = ConsistencyDiscriminator.from_config(json.loads(discriminator_config)).train()

        def judged() -> Tensor:
            return generator_loss(discriminator_logits(critic, unet(x, sigma, labels).sample, sigma, labels))

        def judging() -> tuple[Tensor, Tensor]:
            logits = [discriminator_logits(critic, x, sigma, labels) for _ in ("fakes", "reals")]
            with torch.autocast("cpu", enabled=False):
                return discriminator_loss(*logits), r1_penalty(critic, x.clone(), sigma, labels)

        critics = _kept(judging, [critic], half)
        return _kept(judged, [unet, critic.requires_grad_(False)], half), critics


def _kept(step: Callable[[], Any], nets: Sequence[nn.Module], half: bool) -> int:
    """Bytes for each image that the backward pass of a step needs, beside the weights and their half copies."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    # CUDA's autocast leaves normalisation in float32, that of CPUs does not.
    norms = [m for net in nets for m in net.modules() if half and isinstance(m, nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),)) for norm in norms]
    with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.autograd.graph.saved_tensors_hooks(note, _same):
        result = step()  # which keeps the storages alive, so that each has a name of its own
    for hook in hooks:
        hook.remove()
    del result
    weights = {p.untyped_storage()._cdata for net in nets for p in net.parameters()}
    total = sum(size for key, size in kept.items() if key not in weights)
    return max(0, total - (2 * sum(map(_count, nets)) if half else 0)) // COUNTED


def _same(tensor: Tensor) -> Tensor:
    return tensor
