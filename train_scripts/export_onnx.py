#!/usr/bin/env python
"""Write a consistency model as one ONNX file: f(x, sigma), with the preconditioning inside.

python train_scripts/export_onnx.py my-model --output_dir my-onnx

The same program as `diffusers-ict export-onnx`; see src/diffusers_ict/commands/export_onnx.py.
"""

import sys

from diffusers_ict.commands.export_onnx import main

if __name__ == "__main__":
    sys.exit(main())
