"""Editing with a consistency model as it was trained: one loop, and a pipeline for each of the usual edits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from torch import Tensor
from torch.nn.functional import max_pool2d

from .arguments import number, positive
from .formulas.editing import Colorize, Edit, Inpaint, SuperResolve, start_level
from .image_inputs import read_images, read_mask, read_values
from .pipeline_base import Callback, ConsistencyPipelineBase
from .pipeline_inputs import Generators, Labels
from .transparency import MODES

NOTHING = Inpaint(torch.ones(()))  # is known


class ConsistencyEditPipeline(ConsistencyPipelineBase):
    """Images that keep what an edit knows of given ones: zero-shot editing, CM (arXiv:2303.01469), Algorithm 4.

    Made by `from_pretrained` of any consistency repository, or by `from_pipe` of a loaded pipeline, whose UNet it
    shares. Components, loading and saving are those of `ConsistencyPipelineBase`.

    A model of latents paints anew and draws again: it keeps the latents of which every pixel is known, and puts the
    known pixels into the decoded images. Patches, luminance and noise of pixels mean nothing to latents, and are
    refused.
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
        denormalize: bool = False,
    ) -> ImagePipelineOutput | tuple:
        """Draw images whose known part is that of the given ones, to 1e-6 in [-1, 1].

        Args:
            image: one or several, which are resized to the model's size as other pipelines of diffusers do it: PIL
                images, or arrays [H, W, C] or [B, H, W, C] or tensors [C, H, W] or [B, C, H, W] of floats from 0 to 1,
                of uint8 with white at 255, or of uint16 with white at 65,535. PIL images are converted to the model's
                channels; where it draws no transparency, transparent pixels are laid on white. For a model with a
                `normalization`, arrays or tensors of its size in the units of its data.
            edit: `Inpaint`, `Colorize`, `SuperResolve`, or an `Edit` of your own.
            class_labels: one class for all images, or one for each given image, by number or by name (`id2label`);
                drawn with `generator` when the model is class-conditional and none are given.
            num_inference_steps: levels of the scheduler, as `ConsistencyPipeline` takes them; those above the start are
                left out. Ignored where `sigmas` are given, as is `strength`.
            sigmas: descending noise levels. At sigma_max, noise is added to the known part of the image alone.
            strength: where the levels start, from 0, which gives the image back, to 1, which is sigma_max
                (`start_level`).
            num_images_per_prompt: variations that are drawn of each given image, next to each other.
            generator: one, or a list with one for each drawn image.
            latents: standard normal noise for the first level, [images, C, H, W], instead of drawn noise.
            output_type, return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs: as in other pipelines.
            denormalize: as `ConsistencyPipeline` has it.

        Raises:
            ValueError: an argument out of range or of a wrong shape; the message says what is allowed.
        """
        repeats = positive("num_images_per_prompt", num_images_per_prompt)
        given = self._pixels(image)
        pixels = given.repeat_interleave(repeats, 0)
        normalize = VaeImageProcessor.normalize if self.normalization is None else self.normalization.apply
        images = normalize(pixels)
        self._check_denormalize(denormalize, output_type)
        self._check_inputs(len(images), generator, output_type, callback_on_step_end_tensor_inputs)
        known_pixels = _known_part(edit, images)
        drawn_edit = self._as_drawn(edit, images)
        y = self.encode_images(images)
        known = known_pixels if drawn_edit is edit else drawn_edit.project(y)
        levels = self._levels(num_inference_steps, strength) if sigmas is None else sigmas
        self.scheduler.set_timesteps(device=self._execution_device, sigmas=levels)

        level = self.scheduler.sigmas[0]
        start = y if level < torch.tensor(self.scheduler.config.sigma_max) else known
        sample = start + self._noise(y.shape, generator, latents) * level
        labels = self._labels_of(len(given), repeats, class_labels, generator)
        if sigmas is None and strength == 0:  # not by way of [-1, 1] and noise of sigma_min, which would round
            if output_type == "latent" or self.normalization is not None:
                return self._output(y, output_type, return_dict, denormalize=denormalize)
            return self._output(pixels, output_type, return_dict, in_unit=True)

        after_step = self._after_step(drawn_edit, known, callback_on_step_end)
        sample = self._sample(sample, labels, generator, after_step, lambda x: drawn_edit.complete(x, known))
        if drawn_edit is edit:
            return self._output(sample, output_type, return_dict, denormalize=denormalize)
        with_known = partial(edit.complete_in_range, known=known_pixels)  # the decoder is no inverse of the encoder
        return self._output(sample, output_type, return_dict, finish=with_known)

    def _as_drawn(self, edit: Edit, images: Tensor) -> Edit:
        """What an edit of images keeps of what the network draws: itself, or the latents whose pixels are all known."""
        if self.vqvae is None:
            return edit
        if not isinstance(edit, Inpaint):
            raise ValueError(
                "this model draws latents, which can be drawn again, all of them or under a mask: the edit must be an "
                f"Inpaint, got {type(edit).__name__}."
            )
        repeats = len(edit.mask) if edit.mask.ndim == 4 else 1
        mask = edit.mask.to(images).broadcast_to(repeats, *images.shape[1:]).amax(1, keepdim=True)
        return Inpaint(max_pool2d(mask, self.vae_scale_factor))

    def _after_step(self, edit: Edit, known: Tensor, callback: Callback) -> Callable[[int, Tensor, Tensor], Tensor]:
        """What is done with the sample of each step: (number, time, sample) -> sample."""
        finish = edit.complete_in_range if self.scheduler.config.clip_denoised else edit.complete

        def after_step(step: int, t: Tensor, sample: Tensor) -> Tensor:
            if step == self.num_timesteps - 1:  # the scheduler's last noise is rounding, and rounding is not exact
                sample = finish(sample, known)
            return self._call_back(callback, step, t, sample)

        return after_step

    def _labels_of(self, count: int, repeats: int, class_labels: Labels, generator: Generators) -> Tensor | None:
        """The labels of so many given images, each repeated; where none are given, one is drawn for each repetition."""
        if class_labels is None:
            return self._labels(count * repeats, None, generator)
        labels = self._labels(count, class_labels, generator)
        return None if labels is None else labels.repeat_interleave(repeats)

    def _levels(self, num_inference_steps: int, strength: float) -> list[float]:
        """The level of the strength, and those of the scheduler below it."""
        config = self.scheduler.config
        start = start_level(strength, config.sigma_min, config.sigma_max, config.rho)
        following = self.scheduler.sampling_sigmas(num_inference_steps)[1:]
        return [start, *following[following < start].tolist()]

    def _pixels(self, image: PipelineImageInput, resize: bool = True) -> Tensor:
        """Images with the model's channels, and of its size if they are to be resized: float32 [B, C, H, W] in [0, 1].

        A model that has no size takes images of any that its halvings divide. Arrays that are no pictures stay in their
        own units, and are of the model's size.
        """
        if self.condition_channels:
            raise ValueError(
                "a model of pairs does the edit that it was trained for: call ConsistencyPipeline with image."
            )
        channels, resize = self.image_channels, resize and self.unet.config.sample_size is not None
        size = self._image_size() if resize else None
        if self.normalization is None:
            pixels = read_images(image, "image", self._input_range, MODES.get(channels), size)
        else:
            pixels = read_values(image, "image")
            if size is not None and tuple(pixels.shape[-2:]) != size:
                height, width = pixels.shape[-2:]
                raise ValueError(f"arrays for this model must be {size[1]}x{size[0]}, got {width}x{height}.")
        if pixels.ndim != 4 or pixels.shape[1] != channels:
            raise ValueError(
                f"images for this model must have {channels} channels, got some of the shape {tuple(pixels.shape[1:])}."
            )
        if self.unet.config.sample_size is None:
            self._image_size(*pixels.shape[-2:])
        return pixels.to(self._execution_device)


class ConsistencyInpaintPipeline(ConsistencyEditPipeline):
    """Paint a part of an image anew, and keep the rest."""

    def __call__(  # type: ignore[override]
        self, image: PipelineImageInput, mask_image: PipelineImageInput, strength: float = 1.0, **options: Any
    ) -> ImagePipelineOutput | tuple:
        """Draw images that equal the given ones where the mask is black.

        Args:
            image: as for `ConsistencyEditPipeline`; with several masks, one image may stand for all.
            mask_image: white (from a half up) where to paint, one or one for each image, resized like images: PIL
                images without transparency, or arrays or tensors like `image` or of bool, with one channel or none.
            strength: at 1 nothing of what lies under the white is used; below, painting begins from it.
            options: other arguments of `ConsistencyEditPipeline`.

        Raises:
            ValueError: as `ConsistencyEditPipeline`, and for masks of another number.
        """
        pixels = self._pixels(image)
        mask = read_mask(mask_image, pixels.shape[-2:])
        if len(mask) not in (1, len(pixels)) and len(pixels) != 1:
            raise ValueError(
                f"mask_image must be one mask, or one for each image, got {len(mask)} for {len(pixels)} images."
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
            strength: from 0, which gives the image back, to 1, which forgets it. 0.59 is noise of 5.39.
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
        pixels = self._pixels(image, resize=False)
        (height, width), (h, w) = self._image_size(), pixels.shape[-2:]
        factor = height // h
        if factor < 2 or (h * factor, w * factor) != (height, width):
            raise ValueError(
                f"images to be upscaled must be {width}x{height} divided by a whole number from 2, got {w}x{h}."
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
            ValueError: as `ConsistencyEditPipeline`, and for a model that does not draw three channels, or no pictures.
        """
        if self.normalization is not None:
            raise ValueError("this model draws arrays that are no pictures, and these have no luminance.")
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
        denormalize: bool = False,
    ) -> ImagePipelineOutput | tuple:
        """Remove Gaussian noise of a known standard deviation.

        Args:
            image: as for `ConsistencyEditPipeline`, but of the model's size; arrays and tensors may exceed 0 and 1, as
                noise does.
            sigma: standard deviation of the noise in images in [-1, 1]: twice that in images in [0, 1], and in arrays
                that are no pictures, that of their noise divided by the `scale` of the normalization.
            class_labels, generator, output_type, return_dict, denormalize: as for `ConsistencyEditPipeline`.

        Raises:
            ValueError: as `ConsistencyEditPipeline`, and for another size, or a level outside [sigma_min, sigma_max).
        """
        if self.vqvae is not None:
            raise ValueError("noise of pixels is no noise of latents, which this model draws: it cannot remove it.")
        least, most = self.scheduler.config.sigma_min, self.scheduler.config.sigma_max
        level = number(sigma)
        if level is None or not least <= level < most:
            raise ValueError(f"sigma must be at least {least} and below {most}, got {sigma}.")
        noisy = self._pixels(image, resize=False)
        h, w = noisy.shape[-2:]
        height, width = self._image_size(h, w) if self.unet.config.sample_size is None else self._image_size()
        if (h, w) != (height, width):
            raise ValueError(
                f"images must be {width}x{height} for this model, got {w}x{h}: resizing would change their noise."
            )
        options: dict[str, Any] = {"generator": generator, "output_type": output_type, "return_dict": return_dict}
        options["denormalize"] = denormalize
        # The noise is in the image already.
        return super().__call__(
            noisy,
            NOTHING,
            class_labels,
            sigmas=[level],
            latents=torch.zeros_like(noisy, dtype=torch.float32),
            **options,
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
