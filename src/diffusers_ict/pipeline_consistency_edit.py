"""Editing with a consistency model as it was trained: one loop, and a pipeline for each of the usual edits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from PIL.Image import Image
from torch import Tensor

from .formulas.editing import Colorize, Edit, Inpaint, SuperResolve, start_level
from .pipeline_consistency import Callback, ConsistencyPipelineBase, Generators, Labels, check_counts

NOTHING = Inpaint(torch.ones(()))  # is known
DEEP_MODES = ("I", "F")  # and I;16 and the like: Pillow cuts their values when it converts them
WHITE = {"bool": 1, "uint8": 255, "uint16": 65535}  # by the type of an array


class ConsistencyEditPipeline(ConsistencyPipelineBase):
    """Images that keep what an edit knows of given ones: zero-shot editing, CM (arXiv:2303.01469), Algorithm 4.

    Made by `from_pretrained` of any consistency repository, or by `from_pipe` of a loaded pipeline, whose UNet it
    shares. Components, loading and saving are those of `ConsistencyPipelineBase`.
    """

    _input_range = (0.0, 1.0)

    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        edit: Edit,
        class_labels: Labels = None,
        num_inference_steps: int = 10,
        sigmas: Sequence[float] | None = None,
        strength: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Draw images whose known part is that of the given ones, to 1e-6 in [-1, 1].

        Args:
            image: one or several, of the model's size: PIL images, which are converted to the model's channels, or
                arrays [H, W, C] or [B, H, W, C] or tensors [C, H, W] or [B, C, H, W] of floats from 0 to 1, of uint8
                with white at 255, or of uint16 with white at 65,535.
            edit: `Inpaint`, `Colorize`, `SuperResolve`, or an `Edit` of your own.
            class_labels: one class for all images, or one for each given image, by number or by name (`id2label`);
                drawn with `generator` when the model is class-conditional and none are given.
            num_inference_steps: levels of the scheduler, as `ConsistencyPipeline` takes them; those above the start are
                left out. Ignored where `sigmas` are given, as is `strength`.
            sigmas: descending noise levels. At sigma_max, noise is added to the known part of the image alone.
            strength: where the levels start, from 0, which keeps the image, to 1, which is sigma_max (`start_level`).
            num_images_per_prompt: variations that are drawn of each given image, next to each other.
            generator: one, or a list with one for each drawn image.
            latents: standard normal noise for the first level, [images, C, H, W], instead of drawn noise.
            output_type, return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs: as in other pipelines.

        Raises:
            ValueError: an argument out of range or of a wrong shape; the message says what is allowed.
        """
        check_counts(num_images_per_prompt=num_images_per_prompt)
        given = self._given(image)
        y = given.repeat_interleave(num_images_per_prompt, 0)
        self._check_inputs(len(y), generator, output_type, callback_on_step_end_tensor_inputs)
        known = _known_part(edit, y)
        levels = self._levels(num_inference_steps, strength) if sigmas is None else np.atleast_1d(sigmas)
        self.scheduler.set_timesteps(device=self._execution_device, sigmas=levels)

        start = y if levels[0] < self.scheduler.config.sigma_max else known
        sample = start + self._noise(y.shape, generator, latents) * self.scheduler.sigmas[0]
        labels = self._labels(len(y if class_labels is None else given), class_labels, generator)
        if labels is not None and class_labels is not None:
            labels = labels.repeat_interleave(num_images_per_prompt)

        def after_step(step: int, t: Tensor, sample: Tensor) -> Tensor:
            if step == self.num_timesteps - 1:  # the scheduler's last noise is rounding, and rounding is not exact
                sample = (edit.complete_in_range if self.scheduler.config.clip_denoised else edit.complete)(
                    sample, known
                )
            return self._call_back(callback_on_step_end, step, t, sample)

        sample = self._sample(sample, labels, generator, after_step, lambda x: edit.complete(x, known))
        return self._output(sample, output_type, return_dict)

    def _levels(self, num_inference_steps: int, strength: float) -> list[float]:
        """The level of the strength, and those of the scheduler below it."""
        config = self.scheduler.config
        start = start_level(strength, config.sigma_min, config.sigma_max, config.rho)
        following = self.scheduler.sampling_sigmas(num_inference_steps)[1:]
        return [start, *following[following < start].tolist()]

    def _given(self, image: PipelineImageInput) -> Tensor:
        """Images of the model's size and channels: float32 [B, C, H, W] in [-1, 1]."""
        pixels = self._pixels(image)
        h, w = pixels.shape[-2:]
        height, width = self._image_size(h, w) if self.unet.config.sample_size is None else self._image_size()
        if (h, w) != (height, width):
            raise ValueError(f"images must be {height}x{width} for this model, got {h}x{w}: resize them first.")
        return VaeImageProcessor.normalize(pixels)

    def _pixels(self, image: PipelineImageInput) -> Tensor:
        """Images of any size, with the model's channels: float32 [B, C, h, w] in [0, 1]."""
        channels = self.unet.config.in_channels
        pixels = _read(
            image, "image", self._input_range, do_convert_rgb=channels == 3, do_convert_grayscale=channels == 1
        )
        if pixels.ndim != 4 or pixels.shape[1] != channels:
            raise ValueError(
                f"images for this model must have {channels} channels, got some of the shape {tuple(pixels.shape[1:])}."
            )
        return pixels.to(self._execution_device)


class ConsistencyInpaintPipeline(ConsistencyEditPipeline):
    """Paint a part of an image anew, and keep the rest."""

    def __call__(  # type: ignore[override]
        self, image: PipelineImageInput, mask_image: PipelineImageInput, strength: float = 1.0, **options: Any
    ) -> ImagePipelineOutput | tuple:
        """Draw images that equal the given ones where the mask is black.

        Args:
            image: as for `ConsistencyEditPipeline`; with several masks, one image may stand for all.
            mask_image: white (from a half up) where to paint, one or one for each image: PIL images, or arrays or
                tensors like `image` or of bool, with one channel or none.
            strength: at 1 nothing of what lies under the white is used; below, painting begins from it.
            options: other arguments of `ConsistencyEditPipeline`.

        Raises:
            ValueError: as `ConsistencyEditPipeline`, and for masks of another size or number.
        """
        pixels = self._pixels(image)
        mask = _mask(mask_image)
        if mask.shape[-2:] != pixels.shape[-2:] or (len(mask) not in (1, len(pixels)) and len(pixels) != 1):
            raise ValueError(
                f"mask_image must be one mask, or one for each image, of the image's size: got {len(mask)} of "
                f"{tuple(mask.shape[-2:])} for {len(pixels)} of {tuple(pixels.shape[-2:])}."
            )
        pixels = pixels.expand(max(len(pixels), len(mask)), -1, -1, -1)
        return super().__call__(pixels, Inpaint(mask), strength=strength, **options)


class ConsistencyImg2ImgPipeline(ConsistencyEditPipeline):
    """Draw an image again from a noisy one: SDEdit (arXiv:2108.01073) with the levels of CM (arXiv:2303.01469)."""

    def __call__(  # type: ignore[override]
        self, image: PipelineImageInput, strength: float = 0.59, **options: Any
    ) -> ImagePipelineOutput | tuple:
        """Draw images like the given ones: strokes become pictures, pictures become variations of themselves.

        Args:
            strength: from 0, which keeps the image, to 1, which forgets it. 0.59 is noise of 5.39.
            image, options: as for `ConsistencyEditPipeline`, and so are errors.
        """
        return super().__call__(image, NOTHING, strength=strength, **options)


class ConsistencyUpscalePipeline(ConsistencyEditPipeline):
    """Images of the model's size whose patches have the given means: super-resolution."""

    def __call__(self, image: PipelineImageInput, **options: Any) -> ImagePipelineOutput | tuple:  # type: ignore[override]
        """Draw images whose averages over patches are the given images.

        Args:
            image: as for `ConsistencyEditPipeline`, but smaller than the model's by a whole number.
            options: other arguments of `ConsistencyEditPipeline`, whose errors are raised, too.
        """
        pixels = self._pixels(image)
        (height, width), (h, w) = self._image_size(), pixels.shape[-2:]
        factor = height // h
        if factor < 2 or (h * factor, w * factor) != (height, width):
            raise ValueError(
                f"images to be upscaled must be {height}x{width} divided by a whole number from 2, got {h}x{w}."
            )
        pixels = pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        return super().__call__(pixels, SuperResolve(factor), **options)


class ConsistencyColorizePipeline(ConsistencyEditPipeline):
    """Colours for grey images."""

    def __call__(self, image: PipelineImageInput, **options: Any) -> ImagePipelineOutput | tuple:  # type: ignore[override]
        """Draw images in colour with the luminance of the given ones.

        Args:
            image: as for `ConsistencyEditPipeline`: grey PIL images, or three channels whose luminance is kept.
            options: other arguments of `ConsistencyEditPipeline`.

        Raises:
            ValueError: as `ConsistencyEditPipeline`, and for a model that does not draw three channels.
        """
        return super().__call__(image, Colorize(), **options)


class ConsistencyDenoisePipeline(ConsistencyEditPipeline):
    """Clean images from noisy ones, with one evaluation: f(x, sigma)."""

    _input_range = (-1e4, 1e4)

    def __call__(  # type: ignore[override]
        self,
        image: PipelineImageInput,
        sigma: float,
        class_labels: Labels = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Remove Gaussian noise of a known standard deviation.

        Args:
            image: as for `ConsistencyEditPipeline`; arrays and tensors may exceed 0 and 1, as noise does.
            sigma: standard deviation of the noise in images in [-1, 1]: twice that in images in [0, 1].
            class_labels, generator, output_type, return_dict: as for `ConsistencyEditPipeline`.

        Raises:
            ValueError: as `ConsistencyEditPipeline`, and for a level outside [sigma_min, sigma_max).
        """
        least, most = self.scheduler.config.sigma_min, self.scheduler.config.sigma_max
        if not least <= sigma < most:
            raise ValueError(f"sigma must be at least {least} and below {most}, got {sigma}.")
        noisy = self._pixels(image)
        options: dict[str, Any] = {"generator": generator, "output_type": output_type, "return_dict": return_dict}
        # The noise is in the image already.
        return super().__call__(
            noisy, NOTHING, class_labels, sigmas=[sigma], latents=torch.zeros_like(noisy), **options
        )


def _known_part(edit: Edit, y: Tensor) -> Tensor:
    """P y, once P has proved to be a projector."""
    if not isinstance(edit, Edit):
        raise ValueError(f"edit must be an Edit, such as Inpaint(mask), got {type(edit).__name__}.")
    known = edit.project(y)
    if known.shape != y.shape or not torch.allclose(edit.project(known), known, atol=1e-5):
        raise ValueError(
            f"project of {type(edit).__name__} must be a projector: its images have the shape of the given ones, and "
            "projecting them again changes nothing."
        )
    return known


def _mask(mask_image: PipelineImageInput) -> Tensor:
    """float32 [B, 1, H, W], 1 where white."""
    mask = _read(mask_image, "mask_image", (0.0, 1.0), do_convert_grayscale=True)
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask_image must have one channel, got the shape {tuple(mask.shape[1:])}.")
    if 0 < mask.max() < 0.004:
        raise ValueError(
            "mask_image holds integers of 0 and 1, which are all black: make it bool, or multiply it by 255."
        )
    return (mask >= 0.5).float()


def _read(images: PipelineImageInput, name: str, limits: tuple[float, float], **options: bool) -> Tensor:
    """Images of one type and size: float32 [B, C, h, w] within the limits; refuses what diffusers would misread."""
    listed = images if isinstance(images, list) else [images]
    forms = {_form(one, name) for one in listed}
    if len(forms) != 1:
        raise ValueError(f"{name} must be images of one type and size, got {len(forms)} of them.")
    if not isinstance(listed[0], Image):
        images = [_unit(one, name) for one in listed] if isinstance(images, list) else _unit(images, name)
    processor = VaeImageProcessor(
        vae_scale_factor=1, vae_latent_channels=0, do_resize=False, do_normalize=False, **options
    )
    pixels = processor.preprocess(images).float()
    low, high = limits
    if not (low <= pixels.min() and pixels.max() <= high):
        raise ValueError(
            f"{name} must hold numbers from {low:g} to {high:g}, got {pixels.min():g} to {pixels.max():g}."
        )
    return pixels


def _form(image: object, name: str) -> tuple:
    """Type and size of one image, or of a batch."""
    if isinstance(image, Image) and image.mode.split(";")[0] not in DEEP_MODES:
        return Image, image.size
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim in (2, 3, 4):
        return type(image), tuple(image.shape)
    got = f"a PIL image of mode {image.mode}" if isinstance(image, Image) else type(image).__name__
    raise ValueError(f"{name} must be 8-bit PIL images, or arrays or tensors with 2 to 4 axes, got {got}.")


def _unit(values: Any, name: str) -> Any:
    """An array or tensor with white at 1: integers by the range of their type, floats as they are."""
    dtype = str(values.dtype).removeprefix("torch.")
    if dtype in WHITE:
        return (values.float() if isinstance(values, Tensor) else values.astype(np.float32)) / WHITE[dtype]
    if "float" not in dtype:
        raise ValueError(f"{name} must be floats from 0 to 1, uint8, uint16 or bool, got {dtype}.")
    return values
