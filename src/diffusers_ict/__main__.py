"""`python -m diffusers_ict`: the same programs as `diffusers-ict`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main())
