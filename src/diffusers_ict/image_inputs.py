"""Images and masks as callers of a pipeline give them: PIL images, arrays or tensors, read as one tensor."""

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from PIL.Image import Image
from torch import Tensor

from .transparency import MODES, in_mode, may_be_transparent

DEEP_MODES = ("I", "F")  # and I;16 and the like: Pillow cuts their values when it converts them
WHITE = {"bool": 1, "uint8": 255, "uint16": 65535}  # by the type of an array


def read_images(
    images: PipelineImageInput,
    name: str,
    limits: tuple[float, float],
    mode: str | None,
    size: tuple[int, ...] | None,
) -> Tensor:
    """Images of one type: float32 [B, C, H, W] within the limits; refuses what diffusers would misread.

    Args:
        mode: that PIL images are converted to, or None where none has as many channels.
        size: height and width that images are resized to; None keeps theirs, which must be the same.
    """
    listed = images if isinstance(images, list) else [images]
    forms = {_form(one, name, size) for one in listed}
    if len(forms) != 1:
        raise ValueError(f"{name} must be images of one type and size, got {len(forms)} of them.")
    if isinstance(listed[0], Image):
        images = [one if mode is None else in_mode(one, mode) for one in listed]
    else:
        images = [_unit(one, name) for one in listed] if isinstance(images, list) else _unit(images, name)
    options = {"do_resize": size is not None, "do_normalize": False, "do_convert_grayscale": mode == "L"}
    processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, **options)
    pixels = processor.preprocess(images, *(size or ())).float()
    low, high = limits
    if not (low <= pixels.min() and pixels.max() <= high):
        raise ValueError(
            f"{name} must hold numbers from {low:g} to {high:g}, got {pixels.min():g} to {pixels.max():g}."
        )
    return pixels


def read_conditions(image: PipelineImageInput, channels: int, size: tuple[int, int]) -> Tensor:
    """What a model of pairs is given: float32 [B, C', H, W] in [-1, 1], of the height and width `size`.

    PIL images are resized, by the filter of training; arrays and tensors, which diffusers would resize by another one,
    are not.
    """
    first = image[0] if isinstance(image, list) and image else image
    resized = size if isinstance(first, Image) else None
    pixels = read_images(image, "image", (0.0, 1.0), MODES.get(channels), resized)
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (channels, *size):
        height, width = size
        raise ValueError(
            f"image must be {width}x{height} of {channels} channels for this model, got the shape "
            f"{tuple(pixels.shape[1:])}: resize and convert it."
        )
    return VaeImageProcessor.normalize(pixels)


def read_values(arrays: Any, name: str) -> Tensor:
    """Arrays that are no pictures, in their own units: float32 or float64 [B, C, H, W], as they are.

    Args:
        arrays: of numbers [H, W, C] or [B, H, W, C], a tensor [C, H, W] or [B, C, H, W], or a list of such.
    """
    listed = [
        one if isinstance(one, Tensor) else torch.from_numpy(np.moveaxis(one, -1, -3).copy())
        for one in (arrays if isinstance(arrays, list) else [arrays])
        if isinstance(one, (np.ndarray, Tensor)) and one.ndim in (3, 4) and 0 not in one.shape
    ]
    count = len(arrays) if isinstance(arrays, list) else 1
    if len(listed) != count or len({one.shape for one in listed}) != 1 or listed[0].is_complex():
        raise ValueError(f"{name} must be arrays [H, W, C] or tensors [C, H, W] of numbers, all of one shape.")
    values = torch.cat([one if one.ndim == 4 else one[None] for one in listed])
    values = values if values.dtype == torch.float64 else values.float()
    if not values.isfinite().all():
        raise ValueError(f"{name} must hold finite numbers.")
    return values


def read_mask(mask_image: PipelineImageInput, size: tuple[int, ...]) -> Tensor:
    """float32 [B, 1, H, W], 1 where white; of the height and width `size`."""
    for one in mask_image if isinstance(mask_image, list) else [mask_image]:
        if isinstance(one, Image) and may_be_transparent(one) and np.asarray(one.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError(
                "mask_image must be white where to paint and black elsewhere, got transparent pixels: lay it on black "
                "or on white."
            )
    mask = read_images(mask_image, "mask_image", (0.0, 1.0), "L", size)
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask_image must have one channel, got the shape {tuple(mask.shape[1:])}.")
    if 0 < mask.max() < 0.004:
        raise ValueError(
            "mask_image holds integers of 0 and 1, which are all black: make it bool, or multiply it by 255."
        )
    return (mask >= 0.5).float()


def _form(image: object, name: str, size: tuple[int, ...] | None) -> tuple:
    """Type and size of one image, or of a batch; without the size of PIL images, which are resized one by one."""
    if isinstance(image, Image) and image.mode.split(";")[0] not in DEEP_MODES:
        return Image, size or image.size
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim in (2, 3, 4) and 0 not in image.shape:
        return type(image), tuple(image.shape)
    got = f"a PIL image of mode {image.mode}" if isinstance(image, Image) else type(image).__name__
    raise ValueError(f"{name} must be 8-bit PIL images, or arrays or tensors of pixels with 2 to 4 axes, got {got}.")


def _unit(values: Any, name: str) -> Any:
    """An array or tensor with white at 1: integers by the range of their type, floats as they are."""
    dtype = str(values.dtype).removeprefix("torch.")
    if dtype in WHITE:
        return (values.float() if isinstance(values, Tensor) else values.astype(np.float32)) / WHITE[dtype]
    if "float" not in dtype:
        raise ValueError(f"{name} must be floats from 0 to 1, uint8, uint16 or bool, got {dtype}.")
    return values
