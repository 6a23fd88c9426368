"""Small autoencoders of diffusers whose weights follow from a seed, for grey images of 16 pixels."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny


def make_vae(seed: int = 0, **changes) -> AutoencoderKL:
    """16x16 pixels -> 4 channels of 8x8; shift_factor as newer ones have it, which LDMPipeline does not know."""
    config = {
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
        "shift_factor": 0.1,
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return AutoencoderKL(**{**config, **changes})


def make_tiny(seed: int = 0) -> AutoencoderTiny:
    """16x16 pixels -> 4 channels of 8x8, without a posterior."""
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    layers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return AutoencoderTiny(in_channels=1, out_channels=1, latent_channels=4, **blocks, **layers)
