"""Convert a consistency model that was trained elsewhere into a stock diffusers pipeline.

    python train_scripts/convert.py ct_imagenet64.pt my-model                # a .pt of openai/consistency_models
    python train_scripts/convert.py cifar10_fid_6_0.ckpt my-model            # a .ckpt of the ACT release
    python train_scripts/convert.py openai/diffusers-ct_cat256 my-model --intermediate_sigmas 1.2
    python train_scripts/convert.py google/ddpm-cifar10-32 my-start          # a diffusion model, to be trained further

The folder has a model card and is ready for publish.py; it can also be trained further, as
--pretrained_model_name_or_path of train_ict.py.
Exit codes: 0 done, 2 the model cannot be converted, and why.
"""

from collections.abc import Sequence
from pathlib import Path

from ..hub.licenses import check_license
from ..settings import ArgumentParser
from .program import as_flags, run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the flags say; returns the exit code."""
    return run_program("convert.py", lambda: _convert(argv))


def _convert(argv: Sequence[str] | None) -> None:
    parser = ArgumentParser("convert.py", __doc__)
    parser.add_argument("source", help="file, folder, or id on the Hub")
    parser.add_argument("output_dir", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--intermediate_sigmas",
        type=float,
        nargs="+",
        help="noise levels between sampling steps; by default the published ones of files such as ct_imagenet64.pt",
    )
    parser.add_argument("--resolution", type=int, help="image side, for files of networks that were not released")
    parser.add_argument("--attention_head_dim", type=int, help="channels of an attention head, likewise")
    parser.add_argument("--license", help="of the weights, for the model card: a Hub identifier such as mit")
    options = parser.parse_args(argv)
    if options.license is not None:
        check_license(options.license)
    from ..conversion import check_new, convert, save_converted

    check_new(options.output_dir)  # refused before the work, not after
    converted = convert(
        options.source,
        resolution=options.resolution,
        attention_head_dim=options.attention_head_dim,
        intermediate_sigmas=options.intermediate_sigmas,
    )
    save_converted(converted, options.output_dir, options.source, options.license)
    print(f"Converted from {converted.origin} into {options.output_dir}.")
    for note in converted.notes:
        print(as_flags(note))
    print(f"Next: diffusers-ict check {options.output_dir}")
