#!/usr/bin/env python
"""Bring a consistency model that was trained elsewhere into the form that loads everywhere.

    python train_scripts/convert.py ct_imagenet64.pt my-model                # a .pt of openai/consistency_models
    python train_scripts/convert.py cifar10_fid_6_0.ckpt my-model            # a .ckpt of the ACT release
    python train_scripts/convert.py openai/diffusers-ct_cat256 my-model --intermediate_sigmas 1.2

The folder is a stock diffusers pipeline with a model card, ready for publish.py; it can be trained on, too, as
--pretrained_model_name_or_path of train_ict.py.
(edm_*.pt of openai/consistency_models are diffusion models: a start for training, not for sampling in few steps.)
Exit codes: 0 done, 2 it cannot be brought, and why.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from diffusers_ict.conversion import convert, write_receipt
from diffusers_ict.errors import UserError
from diffusers_ict.training.arguments import ArgumentParser
from diffusers_ict.training.card import write_card

CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the flags say; returns the exit code."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="file, folder, or id on the Hub")
    parser.add_argument("output_dir", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--intermediate_sigmas", type=float, nargs="+", help="noise levels between sampling steps")
    parser.add_argument("--resolution", type=int, help="image side, for files of networks that were not released")
    parser.add_argument("--attention_head_dim", type=int, help="likewise")
    parser.add_argument("--license", help="of the weights, for the model card: a Hub identifier such as mit")
    try:
        options = parser.parse_args(argv)
        if options.output_dir.exists():
            raise UserError(f"{options.output_dir} exists; name a folder that does not.")
        done = convert(
            options.source,
            resolution=options.resolution,
            attention_head_dim=options.attention_head_dim,
            intermediate_sigmas=options.intermediate_sigmas,
        )
    except UserError as error:
        print(f"convert.py: {error}", file=sys.stderr)
        return 2
    done.pipeline.save_pretrained(options.output_dir)
    write_receipt(options.output_dir, done, options.source, options.license)
    write_card(options.output_dir, CARD_TEMPLATE)
    print(f"From {done.origin}, in {options.output_dir}.")
    for note in done.notes:
        print(note)
    print(f"Next: python train_scripts/doctor.py {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
