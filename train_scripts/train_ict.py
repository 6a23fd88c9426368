#!/usr/bin/env python
"""Train a consistency model from images: iCT, ECT, CT, ACT and others.

accelerate launch --quiet train_scripts/train_ict.py --train_data_dir my_images --resolution 64 --output_dir my-model

The same program as `diffusers-ict train`; see src/diffusers_ict/commands/train.py.
"""

import sys

from diffusers_ict.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
