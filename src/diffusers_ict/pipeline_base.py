"""What the pipelines share: components, loading, saving in a form that stock diffusers loads, and one sampling loop."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DiffusionPipeline,
    ImagePipelineOutput,
    LDMPipeline,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from .autoencoders import decode, encode
from .class_names import load_class_names, save_class_names
from .formulas.preconditioning import with_condition
from .normalization import Normalization, load_normalization, save_normalization
from .pipeline_inputs import Generators, PipelineInputs
from .scheduling_ict import ICTScheduler

Callback = Callable[..., dict | None] | None
# Since diffusers 0.40 the old name warns.
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40) else "torch_dtype"
P = TypeVar("P", bound="ConsistencyPipelineBase")


@dataclass(frozen=True)
class Guide:
    """What samples are moved away from: f_guide + scale (f - f_guide).

    Attributes:
        network: f_guide, called with `label` for all images where that is not None, else with theirs.
    """

    network: nn.Module
    scale: float
    label: int | None = None


class ConsistencyPipelineBase(PipelineInputs):
    """What the pipelines of this package have in common: components, loading, saving, and the one sampling loop.

    Repositories of stock consistency models load, too: any stock consistency scheduler becomes an `ICTScheduler`.
    A pipeline saves itself as the stock ConsistencyModelPipeline, or LDMPipeline, with the stock twin of its scheduler.

    Args:
        unet: a UNet2DModel with positional time embedding.
        scheduler: an ICTScheduler or a CMStochasticIterativeScheduler.
        vqvae: the autoencoder that decodes what the network draws, named as in LDMPipeline; None for a model of pixels.

    Attributes:
        id2label: name of each class by its number, or None; read from and saved as labels.json. A class without a name
            beside others that have one had no images in training, and is drawn only where it is asked for.
        unlabelled: whether the network was also trained without labels, which the last of its classes stands for; read
            from and saved in labels.json.
        normalization: of a model whose data are no pictures, how they came to what the network draws, or None; read
            from and saved as normalization.json.

    Raises:
        ValueError: any other scheduler.
    """

    _callback_tensor_inputs = ["latents"]
    _optional_components = ["vqvae"]
    model_cpu_offload_seq = "unet->vqvae"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: CMStochasticIterativeScheduler,
        vqvae: AutoencoderKL | AutoencoderTiny | None = None,
    ) -> None:
        if not isinstance(scheduler, CMStochasticIterativeScheduler):
            raise ValueError(
                "a consistency pipeline needs an ICTScheduler or a CMStochasticIterativeScheduler, got "
                f"{type(scheduler).__name__}."
            )
        if not isinstance(scheduler, ICTScheduler):
            scheduler = ICTScheduler.from_stock(scheduler)
        super().__init__(unet=unet, scheduler=scheduler)
        self.register_modules(vqvae=vqvae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.id2label: dict[int, str] | None = None
        self.unlabelled = False
        self.normalization: Normalization | None = None

    @classmethod
    def from_pretrained(cls: type[P], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> P:
        """Load a pipeline, the names of its classes and its normalization.

        Arguments are those of `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: labels.json or normalization.json cannot be read; other errors are those of diffusers.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipeline.id2label, pipeline.unlabelled = load_class_names(pretrained_model_name_or_path, kwargs)
        pipeline.normalization = load_normalization(pretrained_model_name_or_path, kwargs)
        return pipeline

    @classmethod
    def from_pipe(cls: type[P], pipeline: DiffusionPipeline, **kwargs: Any) -> P:
        """A pipeline with the components, class names, normalization and progress bar of another.

        Arguments are those of diffusers.
        The UNet is shared, and keeps its dtype unless one is given; diffusers would cast it to float32.
        """
        dtype = {} if {"dtype", "torch_dtype"} & kwargs.keys() else {DTYPE: pipeline.dtype}
        made = super().from_pipe(pipeline, **dtype, **kwargs)
        made.id2label, made.unlabelled = getattr(pipeline, "id2label", None), getattr(pipeline, "unlabelled", False)
        made.normalization = getattr(pipeline, "normalization", None)
        made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
        return made

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """As in diffusers, which warns of a cast even where the network has that dtype: there, nothing is cast."""
        networks = filter(None, (self.unet, self.vqvae))
        if all(weight.dtype == kwargs.get("dtype") for network in networks for weight in network.parameters()):
            kwargs["dtype"] = None
        return super().to(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as a stock ConsistencyModelPipeline with the stock twin of the scheduler, and labels.json beside it.

        A model of latents becomes a stock LDMPipeline, which holds its autoencoder.
        Such a folder, or the Hub repository made of it, loads with and without this package and gives the same
        images with one and two steps. Arguments are those of `DiffusionPipeline.save_pretrained`. Without class names,
        a labels.json that is in the folder is removed, and so is a normalization.json of other data.
        """
        save_normalization(save_directory, self.normalization)
        # Before the rest, which may be uploaded as soon as it is saved.
        save_class_names(save_directory, self.id2label, self.unlabelled)
        parts = {"unet": self.unet, "scheduler": self.scheduler.to_stock()}
        vqvae = self.vqvae
        stock = ConsistencyModelPipeline(**parts) if vqvae is None else LDMPipeline(vqvae=vqvae, **parts)
        stock.save_pretrained(save_directory, **kwargs)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the network draws them: themselves, or the scaled means of their latents."""
        return images if self.vqvae is None else encode(self.vqvae, images)[0] * self.vqvae.config.scaling_factor

    def decode_images(self, sample: Tensor) -> Tensor:
        """What the network draws as images in [-1, 1]: the inverse of `encode_images`, as far as there is one."""
        return sample if self.vqvae is None else decode(self.vqvae, sample)

    # As diffusers has them, for networks that are no ModelMixin, too.

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.unet.parameters()).dtype

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the last call, as in other pipelines."""
        return len(self.scheduler.timesteps)

    def _sample(
        self,
        sample: Tensor,
        labels: Tensor | None,
        generator: Generators,
        after_step: Callable[[int, Tensor, Tensor], Tensor],
        edit: Callable[[Tensor], Tensor] = lambda estimate: estimate,
        guide: Guide | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Evaluate, edit, and add noise again, through the levels that are set: CM, Algorithms 1 and 4.

        Args:
            sample: noisy images of the first level, float32 [B, C, H, W].
            labels: int64 [B], or None.
            after_step: called with (step, timestep, sample); what it returns is the sample.
            edit: called with the clipped estimate; what it returns is the estimate.
            guide: what the estimate is moved away from, or None.
            condition: what the networks see in further input channels, [B, C', H, W] in [-1, 1], or None.
        """
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, t in enumerate(timesteps):
                seen = with_condition(self.scheduler.scale_model_input(sample, t).to(self.dtype), condition)
                output = self.unet(seen, t, class_labels=labels, return_dict=False)[0]
                if guide is not None:  # f_guide + scale (f - f_guide), for f is linear in what its network gives
                    told = labels if guide.label is None or labels is None else torch.full_like(labels, guide.label)
                    other = guide.network(seen, t, class_labels=told, return_dict=False)[0]
                    output = torch.lerp(other.float(), output.float(), guide.scale)
                # The sample stays in float32 whatever the network computes in.
                estimate = edit(self.scheduler.estimate(output.float(), sample))
                sample = after_step(step, t, self.scheduler.renoise(estimate, generator))
                progress_bar.update()
        return sample

    def _output(
        self,
        sample: Tensor,
        output_type: str,
        return_dict: bool,
        in_unit: bool = False,
        denormalize: bool = False,
        finish: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> ImagePipelineOutput | tuple:
        """Samples as the images that a caller asked for.

        Args:
            sample: what the network draws; or, `in_unit`, images in [0, 1].
            denormalize: give them in the units of the data.
            finish: called with decoded images in [-1, 1]; what it returns are the images.
        """
        if not (in_unit or output_type == "latent"):
            sample = finish(self.decode_images(sample))
        if denormalize:
            assert self.normalization is not None
            values = self.normalization.undo(sample)
            images = values if output_type == "pt" else values.permute(0, 2, 3, 1).cpu().numpy()
        else:
            images = self.image_processor.postprocess(sample, output_type, [not in_unit] * len(sample))
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _call_back(self, callback: Callback, step: int, t: Tensor, sample: Tensor) -> Tensor:
        """The sample, or what `callback_on_step_end` returns in its place."""
        returned = None if callback is None else callback(self, step, t, {"latents": sample})
        return (returned or {}).get("latents", sample)
