"""Sample grids, and the exported pipeline of a run."""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image

from ..pipeline_consistency import ConsistencyPipeline
from ..scheduling_ict import ICTScheduler
from .ema import EMA, variant_name


def image_grid(images: np.ndarray, columns: int, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Images in [0, 1], [n, H, W, C] with C = 1, 3 or 4, as one picture.

    Args:
        columns: images in a row.
        zoom: side of a pixel.
        gap: white pixels between images.
    """
    count, height, width, channels = images.shape
    pixels = (images * 255).round().clip(0, 255).astype(np.uint8)
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tall, wide = height * zoom + gap, width * zoom + gap
    sheet = np.full((-(-count // columns) * tall - gap, columns * wide - gap, channels), 255, np.uint8)
    for number, image in enumerate(pixels):
        top, left = number // columns * tall, number % columns * wide
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)


def make_pipeline(unet: UNet2DModel, scheduler: ICTScheduler) -> ConsistencyPipeline:
    """A pipeline around this very UNet, put into eval mode, without progress bars."""
    pipeline = ConsistencyPipeline(unet.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_samples(pipeline: ConsistencyPipeline, folder: Path, step: int, count: int, seed: int) -> Path:
    """Draw `count` images with one step and with two, from the same noise, and save both grids as one PNG.

    Classes go round in order. Images of 2 or more than 4 channels show their first channel.
    """
    device, classes = pipeline.unet.device, pipeline.unet.config.num_class_embeds
    labels = torch.arange(count) % classes if classes else None
    rows = []
    for num_inference_steps in (1, 2):
        generator = torch.Generator(device).manual_seed(seed)
        images = pipeline(count, labels, num_inference_steps, generator=generator, output_type="np", return_dict=False)[
            0
        ]
        rows.append(images)
    images = np.concatenate(rows)
    if images.shape[-1] not in (1, 3, 4):
        images = images[..., :1]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:07d}.png"
    # One row for each number of steps where that is readable, else blocks.
    columns = count if count <= 16 else int(np.ceil(np.sqrt(count)))
    image_grid(images, columns, zoom=max(1, 64 // images.shape[1])).save(target)
    return target


def export(pipeline: ConsistencyPipeline, ema: EMA, folder: Path, teacher: UNet2DModel | None = None) -> None:
    """Save the pipeline in stock form with the first EMA's weights, and the other averages as variants of them.

    The variants are every other EMA, and "teacher", the EMA teacher, from which the authors of ACT draw their samples.
    """
    first, *others = ema.shadows
    if teacher is not None:
        pipeline.unet.load_state_dict(teacher.state_dict())
        pipeline.unet.save_pretrained(folder / "unet", variant="teacher")
    for decay in others:
        ema.copy_to(pipeline.unet, decay)
        pipeline.unet.save_pretrained(folder / "unet", variant=variant_name(decay))
    ema.copy_to(pipeline.unet, first)
    pipeline.save_pretrained(folder)
