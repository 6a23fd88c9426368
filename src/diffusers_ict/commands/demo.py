"""Serve a page on this machine in which the browser draws with a consistency model.

    diffusers-ict demo my-model --open                # a folder, or the id of a repository on the Hub

The page is that of a Space of `diffusers-ict publish --space`. Only this machine can reach it. Ctrl-C ends it, and so
do SIGTERM and SIGHUP.
Exit codes: 0 ended, 130 interrupted before the page was there, 2 no page; the reason is printed.
"""

import argparse
import signal
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .export_onnx import WEIGHTS
from .program import argument, program

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let signals that end a process raise KeyboardInterrupt, so that temporary files go; what is ignored stays so."""

    def end(number: int, frame: object) -> None:
        for taken in before:
            signal.signal(taken, signal.SIG_IGN)  # the end is under way
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    with ended_as_by_ctrl_c(), tempfile.TemporaryDirectory(prefix="demo-") as temporary:
        folder = options.output_dir or Path(temporary)
        with serve(folder, options.port, files=()) as server:  # a port that is taken is told before the work
            page = build_page(options.model, folder, dtype=options.weights, webgpu=options.webgpu)
            server.files = page.files
            print(f"The ONNX file differs from the pipeline by at most {page.difference:.2g}.")
            print(f"Serving at {server.address} (Ctrl-C ends it)", flush=True)
            if options.open:
                webbrowser.open(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
