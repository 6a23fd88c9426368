"""The page on this machine: files of one folder on 127.0.0.1, with the headers that WebAssembly threads need."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# A page with these is isolated from others, which is what browsers ask of pages with shared memory.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class PageHandler(SimpleHTTPRequestHandler):
    """Answers with files of the page alone, quietly."""

    # Those of the operating system may lack or change some of these.
    extensions_map = {
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".png": "image/png",
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

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def serve(folder: Path, port: int = 0) -> PageServer:
    """A server of a page's folder for this machine alone, to be started with `serve_forever`.

    Args:
        port: 0 for any that is free.

    Raises:
        OSError: the port is taken.
    """
    return PageServer(("127.0.0.1", port), partial(PageHandler, directory=str(folder)))
