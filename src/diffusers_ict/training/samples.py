"""Sample grids, and the exported pipeline of a run."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ..array_pictures import Shades
from ..autoencoders import Autoencoder
from ..data.dataset import Images
from ..image_grid import as_pictures, classes_in_turn
from ..normalization import Normalization, save_normalization
from ..pipeline_consistency import ConsistencyPipeline
from ..scheduling_ict import ICTScheduler
from .ema import Average, variant_name

Network = TypeVar("Network", bound=nn.Module)
SHOWN = 256  # arrays of the data that say which values colours span


def contiguous_copy(network: Network) -> Network:
    """A copy without gradients that can be saved: files hold contiguous tensors alone."""
    return copy.deepcopy(network).requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def make_pipeline(
    unet: nn.Module,
    scheduler: ICTScheduler,
    normalization: Normalization | None = None,
    vae: Autoencoder | None = None,
    unlabelled: bool = False,
) -> ConsistencyPipeline:
    """A pipeline around this very UNet, put into eval mode, without progress bars."""
    pipeline = ConsistencyPipeline(unet.eval(), scheduler, vae)
    pipeline.normalization, pipeline.unlabelled = normalization, unlabelled
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_picture(pipeline: ConsistencyPipeline, images: Images, count: int, seed: int) -> Image.Image:
    """Samples with one step and with two, from the same noise, below real images of the same classes.

    Those of pairs are drawn for the conditions of the real images, which stand above.

    Args:
        images: the data, of which random images are shown; classes without images have blank places.
        count: images drawn with each number of steps; classes go round in order.
        seed: of the noise and of the choice of real images.
    """
    device, classes = pipeline.device, pipeline.num_classes
    labels = torch.arange(count) % classes if classes else None
    rows = rows_in_turn(images, labels, count, seed)
    given = None if images.condition is None else images.condition.batch(rows.clamp(min=0), None, "cpu")[0]
    drawn: dict[str, Tensor] = {}
    for steps in (1, 2):
        generator = torch.Generator(device).manual_seed(seed)
        # As in the network's units, in which the data is: pictures in [-1, 1].
        options: dict[str, Any] = {"output_type": "latent" if images.normalization else "pt", "return_dict": False}
        if given is not None:
            options["image"] = (given + 1) / 2
        (sampled,) = pipeline(count, labels, steps, generator=generator, **options)
        drawn[f"{steps} step{'s' if steps > 1 else ''}"] = sampled if images.normalization else sampled * 2 - 1
    real, _ = images.batch(rows.clamp(min=0), None, "cpu")
    real[rows < 0] = 1
    known = images.class_names or list(map(str, range(classes or 0)))
    shown = {} if given is None or images.normalization else {"condition": given}  # arrays have colours of their own
    return array_sheet({**shown, "real": real, **drawn}, images, known if labels is not None else ())


def array_sheet(blocks: dict[str, Tensor], images: Images, class_names: Sequence[str]) -> Image.Image:
    """Blocks [n, C, H, W] in the network's units as one picture, with a bar of values where they are no pictures.

    Args:
        images: of the data, whose values the colours span.
    """
    if images.normalization is None:
        return classes_in_turn({name: as_pictures(block) for name, block in blocks.items()}, class_names)
    undo = images.normalization.undo
    shades = Shades.of(undo(images.part(slice(0, SHOWN))[0].cpu()))
    return shades.with_bar(
        classes_in_turn(shades.rows({name: undo(block) for name, block in blocks.items()}), class_names)
    )


def rows_in_turn(images: Images, labels: Tensor | None, count: int, seed: int) -> Tensor:
    """Random rows of the data, each other than the ones before as long as there are some: of each label in turn.

    -1 where a label has no images.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if labels is None or images.labels is None:
        return order[torch.arange(count) % len(order)]
    known = images.labels.cpu()[order]
    rows = torch.full((count,), -1)
    for label in labels.unique():
        places, there = (labels == label).nonzero().flatten(), order[known == label]
        if len(there):
            rows[places] = there[torch.arange(len(places)) % len(there)]
    return rows


def export(
    pipeline: ConsistencyPipeline, averages: dict[float, Average], folder: Path, teacher: nn.Module | None = None
) -> None:
    """Save the pipeline in stock form with the first EMA's weights, and the other averages as variants of them.

    The variants are every other EMA, and "teacher", the EMA teacher, from which the authors of ACT draw their samples.
    Of a network that cannot save itself as diffusers' models do, the weights and the scheduler are saved.
    """
    _, *others = averages
    variants = {variant_name(decay): averages[decay].module for decay in others}
    if teacher is not None:
        variants["teacher"] = teacher
    for variant, network in variants.items():
        _save(contiguous_copy(network), folder / "unet", variant)
    if isinstance(pipeline.unet, ModelMixin):
        saved = ConsistencyPipeline(contiguous_copy(pipeline.unet), pipeline.scheduler, pipeline.vqvae)
        saved.id2label, saved.unlabelled = pipeline.id2label, pipeline.unlabelled
        saved.normalization = pipeline.normalization
        saved.save_pretrained(folder)
    else:
        _save(contiguous_copy(pipeline.unet), folder / "unet", None)
        pipeline.scheduler.to_stock().save_pretrained(folder / "scheduler")
        save_normalization(folder, pipeline.normalization)
        if pipeline.vqvae is not None:
            pipeline.vqvae.save_pretrained(folder / "vqvae")


def _save(network: nn.Module, folder: Path, variant: str | None) -> None:
    if isinstance(network, ModelMixin):
        network.save_pretrained(folder, variant=variant)
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = (
        "diffusion_pytorch_model.safetensors" if variant is None else f"diffusion_pytorch_model.{variant}.safetensors"
    )
    # safetensors refuses tensors that share memory.
    save_file({key: value.clone().contiguous() for key, value in network.state_dict().items()}, folder / name)
