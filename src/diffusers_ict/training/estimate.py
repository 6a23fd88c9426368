"""What a run will need, before it begins."""

from collections.abc import Iterator

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..objective import Objective
from ..time_embedding import uses_fast_columns
from .images import Images
from .recipe import Recipe


def stages(objective: Objective, total_steps: int) -> Iterator[tuple[int, int]]:
    """(first step, N) of every stage of the curriculum."""
    last = None
    for step in range(total_steps):
        levels = objective.num_levels(step, total_steps)
        if levels != last:
            yield step, levels
        last = levels


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
    recipe: Recipe,
    objective: Objective,
    images: Images,
    batch_size: int,
    unet: UNet2DModel,
    adversary: nn.Module | None,
) -> str:
    """What --dry_run prints: images, parameters, steps, stages of N, and memory."""
    parameters = sum(p.numel() for p in unet.parameters())
    plan = list(stages(objective, recipe.max_train_steps))
    told = plan if len(plan) <= 12 else [*plan[:6], plan[-1]]
    dropped = "" if len(plan) <= 12 else " (not all shown)"
    half = recipe.mixed_precision in ("fp16", "bf16")
    memory = memory_estimate(
        parameters,
        activation_bytes(dict(unet.config), images.shape[1]),
        recipe.train_batch_size,
        len(recipe.ema_decays),
        int(objective.teacher_decay(plan[0][1]) is not None),
        half,
    )
    steps = recipe.max_train_steps
    lines = [
        f"images      {len(images)} of {'x'.join(map(str, images.shape))}, {images.num_classes or 'no'} classes",
        f"parameters  {parameters / 1e6:.2f} M",
        f"steps       {steps} of {batch_size} images, {steps * batch_size / len(images):.1f} epochs",
        f"N stages    {len(plan)}: " + ", ".join(f"{n} from step {k}" for k, n in told) + dropped,
        f"memory      about {memory / 2**30:.2f} GiB: weights, gradients, moments, averages and activations",
    ]
    if recipe.insensitive_time_embedding and uses_fast_columns(unet):
        lines.append("time        the given weights use fast frequencies of the time embedding: they are kept")
    if adversary is not None:
        theirs = sum(p.numel() for p in adversary.parameters())
        lines[1] += f" and {theirs / 1e6:.2f} M in the discriminator, {(parameters + theirs) / 1e6:.2f} M together"
        lines[4] += ", without the discriminator's"
    return "\n".join(lines)
