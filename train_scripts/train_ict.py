#!/usr/bin/env python
# /// script
# requires-python = ">=3.10"
# dependencies = ["diffusers-ict[train]"]
#
# [tool.uv.sources]
# diffusers-ict = { path = ".." }  # this clone: the package is not on PyPI yet
# ///
"""Train a consistency model from images: iCT, ECT, CT, ACT and others.

accelerate launch --quiet train_scripts/train_ict.py --train_data_dir my_images --resolution 64 --output_dir my-model

`uv run train_scripts/train_ict.py ...` does it in an environment of its own, which uv makes.
The same program as `diffusers-ict train`; see src/diffusers_ict/commands/train.py.
"""

import sys

from diffusers_ict.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
