#!/usr/bin/env python
"""Convert a consistency model that was trained elsewhere into a stock diffusers pipeline.

python train_scripts/convert.py ct_imagenet64.pt my-model

The same program as `diffusers-ict convert`; see src/diffusers_ict/commands/convert.py.
"""

import sys

from diffusers_ict.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
