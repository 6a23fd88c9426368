"""ConsistencyPipeline: one- and few-step sampling."""

from collections.abc import Callable, Sequence

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import PipelineImageInput
from torch import Tensor, nn

from .arguments import number, positive
from .formulas.residual import from_residual
from .image_inputs import read_conditions
from .pipeline_base import Callback, ConsistencyPipelineBase, Guide
from .pipeline_inputs import Generators, Labels


class ConsistencyPipeline(ConsistencyPipelineBase):
    """Unconditional or class-conditional image generation with a consistency model.

    Takes what diffusers' ConsistencyModelPipeline takes and more (`sigmas`, `height`, `width`, `output_type="latent"`,
    `callback_on_step_end`, labels in any form, any number of channels). Repositories of either kind load into
    either pipeline. Components, loading and saving are those of `ConsistencyPipelineBase`.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Labels = None,
        num_inference_steps: int = 1,
        timesteps: Sequence[int] | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        callback_steps: int = 1,
        *,
        sigmas: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callback = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        guidance_scale: float = 1.0,
        guide: nn.Module | None = None,
        denormalize: bool = False,
        image: PipelineImageInput | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw images: Algorithm 1 of Consistency Models (arXiv:2303.01469).

        Args:
            batch_size: number of images; with several of `image`, as many as these.
            class_labels: one class for all images, or one for each, by number or by name (`id2label`); drawn with
                `generator` when the model is class-conditional and none are given.
            num_inference_steps: evaluations of the network; ignored where `timesteps` or `sigmas` are given.
            timesteps: descending integer indices into the grid of the scheduler's `rho`.
            generator: one, or a list with one for each image.
            latents: standard normal noise, [batch_size, C, height, width], instead of drawn noise; where the network
                draws latents, of their shape.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]), "pt" ([B, C, H, W] in [0, 1]) or "latent", what the
                network draws: pixels in [-1, 1], scaled latents, which `decode_images` decodes, or residuals of pairs.
            return_dict: an ImagePipelineOutput, or else a tuple with the images.
            callback, callback_steps: callback(step, timestep, sample) after every `callback_steps`-th step.
            sigmas: descending noise levels, the first usually sigma_max.
            height, width: in pixels; by default the model's sample size.
            callback_on_step_end: callback(pipe, step, timestep, {"latents": ...}) after each step; a "latents" entry in
                the dictionary it returns replaces the sample.
            callback_on_step_end_tensor_inputs: which tensors it is handed; only "latents" exists.
            guidance_scale: w of f_guide + w (f - f_guide) in each step, at twice the evaluations. 1 is off; 1 to 1.5
                are usual. Of a model that was trained with `--label_dropout`, f_guide is its own output without labels:
                classifier-free guidance (arXiv:2207.12598).
            guide: a worse network instead, which is led away from: autoguidance (arXiv:2406.02507) Eq. 2. An earlier
                average of the same training, such as
                `UNet2DModel.from_pretrained(folder, subfolder="unet", variant="ema995")`, or a smaller network.
            denormalize: give "np" or "pt" in the units of the data that the model was trained on with `--normalize`.
            image: what a model of pairs is given, one for all images or one for each: PIL images, which are resized to
                the model's size by a Lanczos filter, or arrays [H, W, C] or [B, H, W, C] or tensors [C, H, W] or
                [B, C, H, W] of that size, of floats from 0 to 1, uint8 or uint16.

        Raises:
            ValueError: an argument out of range or of a wrong shape; the message says what is allowed.
        """
        guided = self._guide(guidance_scale, guide)
        self._check_denormalize(denormalize, output_type)
        height, width = self._image_size(height, width)
        batch_size, callback_steps = positive("batch_size", batch_size), positive("callback_steps", callback_steps)
        condition = self._condition(image, (height, width))
        if condition is not None:
            batch_size, condition = _as_many(batch_size, condition)
        if timesteps is not None and sigmas is not None:
            raise ValueError("give timesteps or sigmas, not both.")
        self._check_inputs(batch_size, generator, output_type, callback_on_step_end_tensor_inputs)
        steps = num_inference_steps if timesteps is None and sigmas is None else None
        self.scheduler.set_timesteps(steps, self._execution_device, timesteps, sigmas)

        smaller = self.vae_scale_factor
        shape = (batch_size, self.unet.config.out_channels, height // smaller, width // smaller)
        sample = self._noise(shape, generator, latents) * self.scheduler.init_noise_sigma
        labels = self._labels(batch_size, class_labels, generator)

        def after_step(step: int, t: Tensor, sample: Tensor) -> Tensor:
            sample = self._call_back(callback_on_step_end, step, t, sample)
            if callback is not None and step % callback_steps == 0:
                callback(step, t, sample)
            return sample

        sample = self._sample(sample, labels, generator, after_step, guide=guided, condition=condition)
        scale = self.scheduler.config.residual_scale

        def finish(drawn: Tensor) -> Tensor:
            return drawn if scale is None or condition is None else from_residual(drawn, condition, scale)

        return self._output(sample, output_type, return_dict, denormalize=denormalize, finish=finish)

    def _condition(self, image: PipelineImageInput | None, size: tuple[int, int]) -> Tensor | None:
        """What a model of pairs is given: float32 [B, C', H, W] in [-1, 1]; None for another model."""
        channels = self.condition_channels
        if not channels:
            if image is not None:
                raise ValueError("this model was not trained on pairs and is given no images: leave image out.")
            return None
        if image is None:
            raise ValueError(f"this model draws images for given ones: give image, of {channels} channels.")
        return read_conditions(image, channels, size).to(self._execution_device)

    def _guide(self, scale: float, guide: nn.Module | None) -> Guide | None:
        """What samples are to be led away from, on their device; None where guidance is off."""
        if not (number(scale) or 0) > 0:
            raise ValueError(f"guidance_scale must be a positive number, got {scale!r}.")
        if scale == 1:
            return None
        if guide is None and self.unlabelled:
            return Guide(self.unet, scale, self.num_classes)
        if guide is None:
            raise ValueError(
                f"guidance_scale {scale} needs a guide, such as an earlier average of the same training, or a model "
                "that was trained with label_dropout."
            )
        for name in ("in_channels", "out_channels", "num_class_embeds"):
            if getattr(guide.config, name) != (own := getattr(self.unet.config, name)):
                raise ValueError(f"the guide must have {name} {own} as the model, got {getattr(guide.config, name)}.")
        return Guide(guide.to(self._execution_device, self.dtype), scale)


def _as_many(batch_size: int, condition: Tensor) -> tuple[int, Tensor]:
    """The number of images, and as many conditions: one is for all images, and several are for one image each."""
    if len(condition) == 1:
        return batch_size, condition.expand(batch_size, -1, -1, -1)
    if batch_size not in (1, len(condition)):
        raise ValueError(
            f"image must be one image, or as many as batch_size, got {len(condition)} and batch_size {batch_size}; "
            "repeat them for variations."
        )
    return len(condition), condition
