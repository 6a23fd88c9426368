"""Two blocks of Modular Diffusers, `sample` and `edit`, with diffusers alone (0.42 or newer).

    pipeline = ModularPipeline.from_pretrained(ID, trust_remote_code=True)
    pipeline.load_components()
    pipeline(num_inference_steps=2, output="images")[0].save("sample.png")
    pipeline(image=picture, mask_image=mask, output="images")[0].save("edit.png")

`edit` runs if an image is given. `diffusers-ict publish --modular` writes this file into repositories.
"""

import torch
from diffusers import CMStochasticIterativeScheduler, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import (
    AutoPipelineBlocks,
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
)
from diffusers.utils.torch_utils import randn_tensor

from .pipeline import ConsistencySigmasPipeline


class ConsistencySampleBlock(ModularPipelineBlocks):
    """Draw images from noise, as ConsistencySigmasPipeline of pipeline.py does."""

    @property
    def description(self):
        return "Draws images from noise, in one or more steps."

    @property
    def expected_components(self):
        return [ComponentSpec("unet", UNet2DModel), ComponentSpec("scheduler", CMStochasticIterativeScheduler)]

    @property
    def inputs(self):
        return [InputParam("batch_size", default=1, description="number of images"), *self.common_inputs(steps=2)]

    @property
    def intermediate_outputs(self):
        return [OutputParam("images", description="in the form of `output_type`")]

    @staticmethod
    def common_inputs(steps):
        """Inputs of both blocks; `steps`: how many by default."""
        return [
            InputParam("num_inference_steps", default=steps, description="network evaluations"),
            InputParam("sigmas", description="descending noise levels, instead of num_inference_steps"),
            InputParam("class_labels", description="numbers of classes, for a class-conditional model"),
            InputParam("generator", description="generator of the noise"),
            InputParam("output_type", default="pil", description="pil, np or pt"),
        ]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        pipeline = ConsistencySigmasPipeline(components.unet, components.scheduler)
        block.images = pipeline(
            block.batch_size,
            block.class_labels,
            block.num_inference_steps,
            block.generator,
            output_type=block.output_type,
            sigmas=block.sigmas,
        ).images
        self.set_block_state(state, block)
        return components, state


class ConsistencyEditBlock(ConsistencySampleBlock):
    """Inpainting without further training: Consistency Models (arXiv:2303.01469), Algorithm 4."""

    @property
    def description(self):
        return "Repaints the white pixels of a mask and keeps the rest of an image."

    @property
    def inputs(self):
        return [
            InputParam("image", required=True, description="the image, or several: PIL, arrays or tensors from 0 to 1"),
            InputParam("mask_image", required=True, description="white pixels are repainted, black ones kept"),
            *self.common_inputs(steps=10),
        ]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        pipeline = ConsistencySigmasPipeline(components.unet, components.scheduler)
        unet, scheduler, device = components.unet, components.scheduler, components.unet.device
        image = self.pixels(block.image, unet.config.out_channels, pipeline.size).to(device)
        grey = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        mask = grey.preprocess(block.mask_image, *pipeline.size).to(device, torch.float32)
        known = image * (1 - mask)
        labels = pipeline.prepare_class_labels(len(image), device, block.class_labels)

        pipeline.set_levels(block.num_inference_steps, block.sigmas, device)
        levels = scheduler.sigmas.tolist()
        # At the largest level nothing of what lies under the white is used; below it, painting begins from it.
        start = image if levels[0] < scheduler.config.sigma_max * (1 - 1e-6) else known
        sample = start + randn_tensor(image.shape, block.generator, device, torch.float32) * levels[0]
        for t, level, following in zip(scheduler.timesteps, levels[:-1], levels[1:], strict=True):
            seen = sample / (level**2 + scheduler.config.sigma_data**2) ** 0.5
            output = unet(seen.to(unet.dtype), t, class_labels=labels, return_dict=False)[0].float()
            c_skip, c_out = scheduler.get_scalings_for_boundary_condition(level)
            estimate = c_skip * sample + c_out * output
            if scheduler.config.clip_denoised:
                estimate = estimate.clamp(-1, 1)
            estimate = estimate * mask + known
            noise = randn_tensor(image.shape, block.generator, device, torch.float32)
            sample = estimate + noise * max(0, following**2 - scheduler.config.sigma_min**2) ** 0.5
        block.images = pipeline.postprocess_image(estimate.clamp(-1, 1), block.output_type)
        self.set_block_state(state, block)
        return components, state

    @staticmethod
    def pixels(image, channels, size):
        """Images as the model draws them: float32 [B, channels, H, W] in [-1, 1], resized to (H, W)."""
        convert = {"do_convert_rgb": channels == 3, "do_convert_grayscale": channels == 1}
        processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=channels, **convert)
        pixels = processor.preprocess(image, *size).float()
        if pixels.shape[1] != channels:
            raise ValueError(f"image must have {channels} channels, got {pixels.shape[1]}.")
        return pixels


class ConsistencyBlocks(AutoPipelineBlocks):
    """`edit` if an image is given, otherwise `sample`."""

    block_classes = [ConsistencyEditBlock, ConsistencySampleBlock]
    block_names = ["edit", "sample"]
    block_trigger_inputs = ["image", None]

    @property
    def description(self):
        return "Draws images with a consistency model, or repaints a part of a given image."
