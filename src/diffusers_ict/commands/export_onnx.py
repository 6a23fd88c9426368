"""Write a consistency model as one ONNX file: f(x, sigma), with the preconditioning inside.

    python train_scripts/export_onnx.py my-model --output_dir my-onnx                  # a folder, or an id on the Hub
    python train_scripts/export_onnx.py my-model --output_dir my-onnx --weights fp16   # half as large

Writes model.onnx. Its inputs are x [B, C, H, W], sigma [B] and, for class-conditional models, class_labels [B]; its
output is image [B, C, H, W]. The file is compared with the pipeline at several batch sizes and noise levels, and is not
written if it disagrees.
Exit codes: 0 written, 2 not written, and why.
"""

from collections.abc import Sequence
from pathlib import Path

from ..settings import ArgumentParser
from .program import run_program

WEIGHTS = ("fp32", "fp16")


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the flags say; returns the exit code."""
    return run_program("export_onnx.py", lambda: _export(argv))


def _export(argv: Sequence[str] | None) -> None:
    parser = ArgumentParser("export_onnx.py", __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for model.onnx")
    parser.add_argument("--weights", choices=WEIGHTS, default="fp32", help="how weights are stored [fp32]")
    options = parser.parse_args(argv)
    from ..files import check_writable, public_name
    from ..pipeline_consistency import load_consistency
    from ..web.onnx import export_onnx

    check_writable("output_dir", options.output_dir)
    file = options.output_dir / "model.onnx"
    name, _ = public_name(options.model)
    exported = export_onnx(load_consistency(options.model), file, options.weights, name)
    size = len(exported.content) / 1e6
    print(f"Wrote {file}, {size:.1f} MB. It differs from the pipeline by at most {exported.difference:.2g}.")
