#!/usr/bin/env python
"""Serve a page on this machine in which the browser draws with a consistency model.

python train_scripts/demo.py my-model --open

The same program as `diffusers-ict demo`; see src/diffusers_ict/commands/demo.py.
"""

import sys

from diffusers_ict.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
