"""Serve a page on this machine in which the browser draws with a consistency model.

    python train_scripts/demo.py my-model --open                # a folder, or the id of a repository on the Hub

The page is the one of a Space that `publish.py --space` makes. Only this machine can reach it. Ctrl-C ends it.
Exit codes: 0 ended by Ctrl-C, 2 no page; the reason is printed.
"""

import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ..settings import ArgumentParser
from .export_onnx import WEIGHTS
from .program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the flags say; returns the exit code."""
    return run_program("demo.py", lambda: _demo(argv))


def _demo(argv: Sequence[str] | None) -> None:
    parser = ArgumentParser("demo.py", __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--output_dir", type=Path, help="where the page is written, to be kept [a temporary folder]")
    parser.add_argument("--weights", choices=WEIGHTS, default="fp32", help="how weights are stored [fp32]")
    parser.add_argument("--webgpu", action="store_true", help="let the page offer WebGPU, too")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 [any that is free]")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    options = parser.parse_args(argv)
    from ..files import check_writable
    from ..web.build import build_page
    from ..web.server import serve

    if options.output_dir is not None:
        check_writable("output_dir", options.output_dir)
    with tempfile.TemporaryDirectory(prefix="demo-") as temporary:
        folder = options.output_dir or Path(temporary)
        with serve(folder, options.port) as server:  # a port that is taken is told before the work
            exported = build_page(options.model, folder, dtype=options.weights, webgpu=options.webgpu)
            print(f"The ONNX file differs from the pipeline by at most {exported.difference:.2g}.")
            print(f"Serving at {server.address} (Ctrl-C ends it)", flush=True)
            if options.open:
                webbrowser.open(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
