"""Consistency sampling at any noise levels, with diffusers alone: a custom pipeline for `trust_remote_code=True`.

    DiffusionPipeline.from_pretrained(ID, custom_pipeline=ID, trust_remote_code=True)(sigmas=[80.0, 0.821])

Self-contained: it needs diffusers and nothing else. Written into every repository that diffusers-ict publishes.
"""

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, ImagePipelineOutput


class ConsistencySigmasPipeline(ConsistencyModelPipeline):
    """The stock pipeline with one argument more: `sigmas`, descending noise levels, the first usually sigma_max.

    It also draws models of latents, by their classes, too: `vqvae` decodes them.
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
    ):
        """As in ConsistencyModelPipeline; with `sigmas`, `num_inference_steps` is not used.

        Images need not be square, and output_type "latent" gives them as the network draws them, [B, C, H, W], without
        a range.
        """
        stock = isinstance(self.unet.config.sample_size, int) and output_type != "latent" and self.vqvae is None
        if sigmas is None and stock:
            return super().__call__(
                batch_size,
                class_labels,
                num_inference_steps,
                generator=generator,
                latents=latents,
                output_type=output_type,
                return_dict=return_dict,
            )
        device, size = self._execution_device, self.unet.config.sample_size
        channels, (height, width) = (
            self.unet.config.in_channels,
            size if isinstance(size, list | tuple) else (size, size),
        )
        sample = self.prepare_latents(
            batch_size, channels, height, width, self.unet.dtype, device, generator, latents=latents
        )
        labels = self.prepare_class_labels(batch_size, device, class_labels)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if sigmas is not None:
            self._set_levels(sigmas, device)
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(sample, t)
            output = self.unet(scaled, t, class_labels=labels, return_dict=False)[0]
            sample = self.scheduler.step(output, t, sample, generator=generator, return_dict=False)[0]

        if self.vqvae is not None and output_type != "latent":
            sample = self.vqvae.decode(sample / self.vqvae.config.scaling_factor, return_dict=False)[0]
        images = sample if output_type == "latent" else self.postprocess_image(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _set_levels(self, sigmas, device):
        """The stock scheduler takes grid indices only; its state is two arrays."""
        config, levels = self.scheduler.config, np.asarray(sigmas, dtype=np.float64)
        inside = (levels >= config.sigma_min) & (levels <= config.sigma_max)
        if len(levels) == 0 or (np.diff(levels) >= 0).any() or not inside.all():
            raise ValueError(
                f"sigmas must descend and lie within [{config.sigma_min}, {config.sigma_max}], got {sigmas}."
            )
        self.scheduler.sigmas = torch.from_numpy(np.append(levels, config.sigma_min).astype(np.float32))
        self.scheduler.timesteps = torch.from_numpy(self.scheduler.sigma_to_t(levels)).to(device)
