"""Serve a page on this machine in which the browser draws with a consistency model.

    diffusers-ict demo my-model --open                # a folder, or the id of a repository on the Hub

The page is that of a Space of `diffusers-ict publish --space`. Only this machine can reach it. Ctrl-C ends it.
Exit codes: 0 ended by Ctrl-C, 2 no page; the reason is printed.
"""

import argparse
import tempfile
import webbrowser
from pathlib import Path

from .export_onnx import WEIGHTS
from .program import argument, program


@program(
    "demo",
    __doc__,
    argument("model", help="folder or Hub id of a consistency pipeline"),
    argument("--output_dir", type=Path, help="where the page is written, to be kept [a temporary folder]"),
    WEIGHTS,
    argument("--webgpu", action="store_true", help="let the page offer WebGPU, too"),
    argument("--port", type=int, default=0, help="of 127.0.0.1 [any that is free]"),
    argument("--open", action="store_true", help="open the page in the browser"),
)
def main(options: argparse.Namespace) -> None:
    """Serve as the flags say."""
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
