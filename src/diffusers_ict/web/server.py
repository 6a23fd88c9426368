"""The page on this machine: its files on 127.0.0.1, with the headers that WebAssembly threads need."""

import sys
from collections.abc import Iterable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

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

    server: "PageServer"
    timeout = 15.0  # seconds in which a visitor sends nothing, or takes nothing
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

    def send_head(self):
        """Start to answer; nobody but browsers that were given our address, and with no file but the page's.

        A site that has its own name point to 127.0.0.1 could read the page, and then the Host is its name.
        """
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            return self.send_error(403)
        name = unquote(urlsplit(self.path).path)[1:] or "index.html"
        if name not in self.server.files or not self.server.holds(name):
            return self.send_error(404)
        return super().send_head()

    def log_message(self, format, *args) -> None:
        pass


class PageServer(ThreadingHTTPServer):
    """A server of some files of one folder; `address` is where its page is.

    Attributes:
        files: the names within the folder that are served.
    """

    def __init__(self, folder: Path, files: Iterable[str], port: int) -> None:
        self.folder, self.files = folder.absolute(), frozenset(files)
        super().__init__(("127.0.0.1", port), partial(PageHandler, directory=str(self.folder)))
        names = ("127.0.0.1", "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names} | {*names * (self.server_port == 80)}

    def holds(self, name: str) -> bool:
        """Whether a file lies in the folder, and not where a link leads to."""
        return (self.folder / name).resolve().is_relative_to(self.folder.resolve())

    def handle_error(self, request, client_address) -> None:
        # A visitor who closes the page early, or stops to read, is no error.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def files_of(folder: Path) -> frozenset[str]:
    """The names of all files in a folder, at any depth."""
    return frozenset(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def serve(folder: Path, port: int = 0, files: Iterable[str] | None = None) -> PageServer:
    """A server of a page for this machine alone, to be started with `serve_forever`.

    Args:
        folder: of the page.
        port: 0 for any that is free.
        files: what is served, by default what lies in the folder now; `files` of the server may be set later.

    Raises:
        UserError: the port does not exist or cannot be used.
    """
    try:
        return PageServer(folder, files_of(folder) if files is None else files, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"`port` {port} cannot be used: {reason}; name another one, or 0 for any.") from error
