"""Convert a consistency model that was trained elsewhere into a stock diffusers pipeline.

    diffusers-ict convert ct_imagenet64.pt my-model                # a .pt of openai/consistency_models
    diffusers-ict convert cifar10_fid_6_0.ckpt my-model            # a .ckpt of the ACT release
    diffusers-ict convert openai/diffusers-ct_cat256 my-model --intermediate_sigmas 1.2
    diffusers-ict convert google/ddpm-cifar10-32 my-start          # a diffusion model, to be trained further

The folder has a model card and is ready for `diffusers-ict publish`; it can also be trained further, as
--pretrained_model_name_or_path of `diffusers-ict train`.
Exit codes: 0 done, 2 the model cannot be converted; the reason is printed.
"""

import argparse
from pathlib import Path

from ..hub.metadata import check_license
from ..names import operand, shell, visible
from .program import argument, as_flags, program


@program(
    "convert",
    __doc__,
    argument("source", help="file, folder, or id on the Hub"),
    argument("output_dir", type=Path, help="a folder that does not exist yet"),
    argument(
        "--intermediate_sigmas",
        type=float,
        nargs="+",
        help="noise levels between sampling steps; by default the published ones of files such as ct_imagenet64.pt",
    ),
    argument("--resolution", type=int, help="image side, for files of networks that were not released"),
    argument("--attention_head_dim", type=int, help="channels of an attention head, for the same files"),
    argument("--license", help="of the weights, for the model card: a Hub identifier such as mit"),
)
def main(options: argparse.Namespace) -> None:
    """Convert as the flags say."""
    check_license(options.license)
    from ..conversion import check_new, convert, save_converted
    from ..progress import told

    check_new(options.output_dir)  # refused before the work, not after
    with told(f"converting {options.source}"):
        converted = convert(
            options.source,
            resolution=options.resolution,
            attention_head_dim=options.attention_head_dim,
            intermediate_sigmas=options.intermediate_sigmas,
        )
    save_converted(converted, options.output_dir, options.source, options.license)
    print(f"Converted from {visible(converted.origin)} into {visible(options.output_dir)}.")
    for note in (*converted.notes, *converted.advice):
        print(as_flags(note))
    print(f"Next: {shell(['diffusers-ict', 'check', operand(options.output_dir)])}")
