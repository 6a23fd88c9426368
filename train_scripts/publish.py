#!/usr/bin/env python
"""Publish a finished run on the Hub, or finish publishing one.

python train_scripts/publish.py my-model --hub_model_id someone/my-model

The same program as `diffusers-ict publish`; see src/diffusers_ict/commands/publish.py.
"""

import sys

from diffusers_ict.commands.publish import main

if __name__ == "__main__":
    sys.exit(main())
