"""Consistency sampling at any noise levels, and for given images, with diffusers alone: a custom pipeline.

    DiffusionPipeline.from_pretrained(ID, custom_pipeline=ID, trust_remote_code=True)(sigmas=[80.0, 0.821])

It needs diffusers and nothing else. diffusers-ict writes it into every repository that it publishes.
"""

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from PIL import Image


class ConsistencySigmasPipeline(ConsistencyModelPipeline):
    """The stock pipeline with two more arguments.

    `sigmas`: descending noise levels, the first usually sigma_max. `image`: the condition of a model of pairs, whose
    UNet has more channels in than out. The pipeline also samples models of latents, with classes: `vqvae` decodes them.
    """

    _optional_components = ["vqvae"]
    model_cpu_offload_seq = "unet->vqvae"

    def __init__(self, unet, scheduler, vqvae=None):
        super().__init__(unet=unet, scheduler=scheduler)
        self.register_modules(vqvae=vqvae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size=1,
        class_labels=None,
        num_inference_steps=1,
        generator=None,
        latents=None,
        output_type="pil",
        return_dict=True,
        sigmas=None,
        image=None,
    ):
        """As in ConsistencyModelPipeline; with `sigmas`, `num_inference_steps` is not used.

        `image` is a PIL image, a tensor [B, C, H, W] or an array [B, H, W, C] of floats from 0 to 1, or a list of
        one of these. A single image serves the whole batch; several images serve one sample each.

        Images need not be square, and output_type "latent" returns the last sample as it is, [B, C, H, W].
        """
        given = max(0, self.unet.config.in_channels - self.unet.config.out_channels)
        if bool(given) != (image is not None):
            raise ValueError(f"image must have {given} channels for this model." if given else "leave image out.")
        stock = isinstance(self.unet.config.sample_size, int) and output_type != "latent" and self.vqvae is None
        if sigmas is None and image is None and stock:
            return super().__call__(
                batch_size,
                class_labels,
                num_inference_steps,
                generator=generator,
                latents=latents,
                output_type=output_type,
                return_dict=return_dict,
            )
        device = self._execution_device
        condition = None if image is None else self.condition(image, given).to(device)
        if condition is not None and len(condition) > 1:
            if batch_size not in (1, len(condition)):
                raise ValueError(f"batch_size must be 1 or the number of images, {len(condition)}, got {batch_size}.")
            batch_size = len(condition)
        self.set_levels(num_inference_steps, sigmas, device)
        size = self.size
        sample = self.prepare_latents(
            batch_size, self.unet.config.out_channels, *size, self.unet.dtype, device, generator, latents=latents
        )
        labels = self.prepare_class_labels(batch_size, device, class_labels)
        for t in self.progress_bar(self.scheduler.timesteps):
            seen = self.scheduler.scale_model_input(sample, t)
            if condition is not None:
                seen = torch.cat([seen, condition.expand(batch_size, -1, -1, -1).to(seen.dtype)], 1)
            output = self.unet(seen, t, class_labels=labels, return_dict=False)[0]
            sample = self.scheduler.step(output, t, sample, generator=generator, return_dict=False)[0]
        scale = (self.scheduler.config.get("_ict") or self.scheduler.config).get("residual_scale")
        if scale is not None and output_type != "latent":  # what was drawn is the difference from the condition
            sample = condition + scale * sample.float()

        if self.vqvae is not None and output_type != "latent":
            sample = self.vqvae.decode(sample / self.vqvae.config.scaling_factor, return_dict=False)[0]
        images = sample if output_type == "latent" else self.postprocess_image(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def size(self):
        """Height and width of the model's images."""
        size = self.unet.config.sample_size
        return tuple(size) if isinstance(size, (list, tuple)) else (size, size)

    def set_levels(self, num_inference_steps, sigmas, device):
        """Set the levels of the scheduler: `sigmas`, or those of its grid."""
        if sigmas is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            return
        config, levels = self.scheduler.config, np.asarray(sigmas, dtype=np.float64)
        inside = (levels >= config.sigma_min) & (levels <= config.sigma_max)
        if len(levels) == 0 or (np.diff(levels) >= 0).any() or not inside.all():
            raise ValueError(
                f"sigmas must descend and lie within [{config.sigma_min}, {config.sigma_max}], got {sigmas}."
            )
        # The stock scheduler takes grid indices only; its state is two arrays.
        self.scheduler.set_timesteps(1)
        self.scheduler.sigmas = torch.from_numpy(np.append(levels, config.sigma_min).astype(np.float32))
        self.scheduler.timesteps = torch.from_numpy(self.scheduler.sigma_to_t(levels)).to(device)

    def condition(self, image, channels):
        """Images as the model takes them, in [-1, 1]: [B, channels, H, W]. PIL images are converted and resized."""
        listed, (height, width) = image if isinstance(image, list) else [image], self.size
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if mode and all(isinstance(one, Image.Image) for one in listed):
            image = [self.in_mode(one, mode).resize((width, height), Image.Resampling.LANCZOS) for one in listed]
        processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, do_resize=False, do_normalize=False)
        pixels = processor.preprocess(image).float()
        if tuple(pixels.shape[1:]) != (channels, height, width) or not 0 <= pixels.min() <= pixels.max() <= 1:
            raise ValueError(
                f"image must be {width}x{height} of {channels} channels from 0 to 1, got {tuple(pixels.shape)} from "
                f"{pixels.min():g} to {pixels.max():g}."
            )
        return VaeImageProcessor.normalize(pixels)

    @staticmethod
    def in_mode(picture, mode):
        """A PIL image in another mode; where that has no alpha, transparent pixels are laid on white."""
        if ("A" in picture.mode or "transparency" in picture.info) and mode != "RGBA":
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture.convert("RGBA"))
            picture = white
        return picture.convert(mode)
