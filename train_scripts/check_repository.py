#!/usr/bin/env python
"""Examine a consistency repository, local or on the Hub.

python train_scripts/check_repository.py my-model

The same program as `diffusers-ict check`; see src/diffusers_ict/commands/check_repository.py.
"""

import sys

from diffusers_ict.commands.check_repository import main

if __name__ == "__main__":
    sys.exit(main())
