"""Write a consistency model as one ONNX file: f(x, sigma), with the preconditioning inside.

    diffusers-ict export-onnx my-model --output_dir my-onnx                  # a folder, or an id on the Hub
    diffusers-ict export-onnx my-model --output_dir my-onnx --weights fp16   # half as large

Writes model.onnx. Its inputs are x [B, C, H, W], sigma [B] and, for class-conditional models, class_labels [B]; its
output is image [B, C, H, W]. The file is compared with the pipeline at several batch sizes and noise levels, and is not
written if it disagrees.
Exit codes: 0 written, 2 not written; the reason is printed.
"""

import argparse
from pathlib import Path

from ..names import visible
from .program import argument, program

WEIGHTS = argument("--weights", choices=("fp32", "fp16"), default="fp32", help="how weights are stored [fp32]")


@program(
    "export-onnx",
    __doc__,
    argument("model", help="folder or Hub id of a consistency pipeline"),
    argument("--output_dir", type=Path, required=True, help="folder for model.onnx"),
    WEIGHTS,
)
def main(options: argparse.Namespace) -> None:
    """Export as the flags say."""
    from ..files import atomic_file, check_writable, public_name
    from ..loading import load_consistency
    from ..web.onnx import make_onnx

    check_writable("output_dir", options.output_dir)
    file = options.output_dir / "model.onnx"
    name, _ = public_name(options.model)
    exported = make_onnx(load_consistency(options.model), options.weights, name)
    with atomic_file(file) as temporary:
        temporary.write_bytes(exported.content)
    size = len(exported.content) / 1e6
    print(f"Wrote {visible(file)}, {size:.1f} MB. It differs from the pipeline by at most {exported.difference:.2g}.")
