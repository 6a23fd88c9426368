#!/usr/bin/env python
"""Measure a consistency model: FID, KID, Inception score, precision, recall, density and coverage.

python train_scripts/evaluate.py my-model --train_data_dir my_images --num_samples 50000 --steps 1 2 4

The same program as `diffusers-ict evaluate`; see src/diffusers_ict/commands/evaluate.py.
"""

import sys

from diffusers_ict.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
