"""The summary of a run before it begins: parameters, stages and memory."""

from collections.abc import Iterator

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..data.images import Images
from ..data.overview import overview
from ..objective import Objective


def stages(objective: Objective, total_steps: int) -> Iterator[tuple[int, dict[str, float]]]:
    """(first step, schedule) of every stage of the curriculum."""
    last = None
    for step in range(total_steps):
        now = objective.schedule(step, total_steps)
        if now != last:
            yield step, now
        last = now


def activation_bytes(config: dict, resolution: int) -> int:
    """Bytes one image's forward pass keeps for the backward pass, in float32.

    Counted, not computed: the UNet runs on torch's meta device, where tensors have shapes and no data.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        unet = UNet2DModel.from_config(config).train()
        weights = {p.untyped_storage()._cdata for p in unet.parameters()}
        x = torch.empty(1, config["in_channels"], resolution, resolution)
        labels = torch.empty(1, dtype=torch.int64) if config.get("num_class_embeds") else None
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = unet(x, torch.empty(1), class_labels=labels).sample
    del output
    return sum(size for key, size in kept.items() if key not in weights)


def memory_estimate(parameters: int, activations: int, batch_size: int, emas: int, teachers: int, half: bool) -> int:
    """Bytes of a training process: weights, gradients, two moments, EMAs, a copy to sample with, and activations."""
    copies = 4 + emas + 1 + teachers
    return 4 * parameters * copies + activations * batch_size // (2 if half else 1)


def describe(
    images: Images,
    objective: Objective,
    unet: UNet2DModel,
    discriminator: nn.Module | None,
    *,
    steps: int,
    batch_size: int,
    micro_batch_size: int,
    emas: int,
    half_precision: bool,
    dropout: str,
) -> str:
    """The summary of a run before it begins: images, parameters, dropout, steps, stages of the curriculum, and memory.

    `dropout` says how much, and where it comes from.
    """
    parameters = sum(p.numel() for p in unet.parameters())
    memory = memory_estimate(
        parameters,
        activation_bytes(dict(unet.config), images.shape[1]),
        micro_batch_size,
        emas,
        int(objective.teacher_decay(0, steps) is not None),
        half_precision,
    )
    size, without = f"{parameters / 1e6:.2f} M", ""
    if discriminator is not None:
        added = sum(p.numel() for p in discriminator.parameters())
        size += f" and {added / 1e6:.2f} M in the discriminator, {(parameters + added) / 1e6:.2f} M together"
        without = ", without the discriminator's"
    return "\n".join(
        [
            *(f"{title:<11} {text}" for title, text in overview(images).items()),
            f"parameters  {size}",
            f"dropout     {dropout}",
            f"steps       {steps} of {batch_size} images, {steps * batch_size / len(images):.1f} epochs",
            *_describe_stages(list(stages(objective, steps))),
            f"memory      about {memory / 2**30:.2f} GiB: weights, gradients, moments, averages, activations{without}",
        ]
    )


def _describe_stages(plan: list[tuple[int, dict[str, float]]]) -> list[str]:
    """A line for each name of the schedule: its values, and the steps they begin at."""
    shown = plan if len(plan) <= 12 else [*plan[:6], plan[-1]]
    more = "" if len(plan) <= 12 else " (not all shown)"
    return [
        f"{name:<11} {len(plan)} stages: " + ", ".join(f"{values[name]} from step {k}" for k, values in shown) + more
        for name in plan[0][1]
    ]
