#!/usr/bin/env python
"""Make averages of any length of a finished run, from the snapshots that it kept.

python train_scripts/ema.py my-model --std 0.05 0.1 0.15

The same program as `diffusers-ict ema`; see src/diffusers_ict/commands/ema.py.
"""

import sys

from diffusers_ict.commands.ema import main

if __name__ == "__main__":
    sys.exit(main())
