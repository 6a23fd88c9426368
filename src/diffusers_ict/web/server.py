"""The page on this machine: files of one folder on 127.0.0.1, with the headers that WebAssembly threads need."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..errors import UserError, first_line

# A page with these is isolated from others, which is what browsers ask of pages with shared memory.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class PageHandler(SimpleHTTPRequestHandler):
    """Answers with files of the page alone, quietly. Types of files do not depend on the operating system."""

    extensions_map = {
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path):  # pages have no lists of their files
        self.send_error(404)

    def log_message(self, format, *args) -> None:
        pass


class PageServer(ThreadingHTTPServer):
    """A server of one folder; `address` is where its page is."""

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a visitor who closes the page early is no error
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def serve(folder: Path, port: int = 0) -> PageServer:
    """A server of a page's folder for this machine alone, to be started with `serve_forever`.

    Args:
        port: 0 for any that is free.

    Raises:
        UserError: the port does not exist or cannot be used.
    """
    try:
        return PageServer(("127.0.0.1", port), partial(PageHandler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"`port` {port} cannot be used: {reason}; name another one, or 0 for any.") from error
