"""The discriminator of ACT: the encoder half of a UNet with one logit, as a diffusers model."""

from collections.abc import Sequence

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import Tensor, nn

POOLED = 2  # the feature map before the logit is 2 x 2


class ConsistencyDiscriminator(ModelMixin, ConfigMixin):
    """D(x, t, label): the logit that a clean image is real. ACT (arXiv:2311.14097) Sec. 4.2 and its released networks.

    x is an image in [-1, 1], never a noised one: t is the noise level from which a fake was mapped back.

    Args:
        sample_size: side of the images in pixels.
        in_channels: of the images.
        down_block_types, block_out_channels, layers_per_block: the encoder, as in UNet2DModel. The default is the
            CIFAR-10 network of the paper's 41.6 M parameters.
        attention_head_dim, norm_num_groups, norm_eps, act_fn, freq_shift, flip_sin_to_cos: as in UNet2DModel.
        norm_out: a group normalisation before the logit.
        normalized: whether there is any normalisation. Without, the last convolution of each residual block begins at
            zero (R3GAN, arXiv:2501.05441, Sec. 3).
        num_class_embeds: number of classes, or None.

    Raises:
        ValueError: images too small for the number of halvings.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        block_out_channels: Sequence[int] = (128, 128, 256, 256),
        layers_per_block: int = 3,
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        act_fn: str = "silu",
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        norm_out: bool = True,
        num_class_embeds: int | None = None,
        time_embedding_type: str = "positional",
        normalized: bool = True,
    ) -> None:
        super().__init__()
        smallest = POOLED * 2 ** (len(block_out_channels) - 1)
        if sample_size < smallest:
            raise ValueError(
                f"a discriminator of {len(block_out_channels)} levels needs images of at least {smallest} pixels, got "
                f"{sample_size}; give it fewer levels."
            )
        width, embedding = block_out_channels[0], 4 * block_out_channels[0]
        common = {"resnet_eps": norm_eps, "resnet_act_fn": act_fn, "resnet_groups": norm_num_groups,
                  "temb_channels": embedding}  # fmt: skip
        self.conv_in = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(width, embedding)
        self.class_embedding = nn.Embedding(num_class_embeds, embedding) if num_class_embeds else None
        self.down_blocks = nn.ModuleList(
            get_down_block(
                kind,
                num_layers=layers_per_block,
                in_channels=block_out_channels[max(level - 1, 0)],
                out_channels=block_out_channels[level],
                add_downsample=level < len(block_out_channels) - 1,
                downsample_padding=1,
                attention_head_dim=attention_head_dim or block_out_channels[level],  # None: one head
                **common,
            )
            for level, kind in enumerate(down_block_types)
        )
        last = block_out_channels[-1]
        self.mid_block = UNetMidBlock2D(
            in_channels=last, resnet_time_scale_shift="default", attention_head_dim=attention_head_dim or last, **common
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, last, eps=norm_eps) if norm_out else nn.Identity()
        self.conv_act = nn.SiLU()
        self.logit = nn.Linear(last * POOLED**2, 1)
        if not normalized:
            _without_normalisation(self)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], timesteps 250 ln(sigma) [B], labels [B] -> logits [B]; > 0 means real.

        Raises:
            ValueError: labels missing, or given to a model without classes.
        """
        if (class_labels is None) != (self.class_embedding is None):
            count, rule = (self.config.num_class_embeds, "given") if class_labels is None else ("no", "left out")
            raise ValueError(f"this discriminator has {count} classes: class_labels must be {rule}.")
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels).to(sample.dtype)
        hidden = self.conv_in(sample)
        for block in self.down_blocks:
            hidden, _ = block(hidden, embedding)
        hidden = self.conv_act(self.conv_norm_out(self.mid_block(hidden, embedding)))
        pooled = nn.functional.adaptive_avg_pool2d(hidden, POOLED)
        return self.logit(pooled.flatten(1)).squeeze(1)


def _without_normalisation(discriminator: nn.Module) -> None:
    """Take every group normalisation out, and let residual blocks begin as the identity, which keeps the scale."""
    for module in list(discriminator.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
