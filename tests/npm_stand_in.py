"""A registry of npm on 127.0.0.1 with one small archive in the place of onnxruntime-web."""

import gzip
import io
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from diffusers_ict.web import runtime

CONTENTS = {f"package/dist/{name}": f"// {name}".encode() for name in (*runtime.FILES, *runtime.WEBGPU_FILES)}


def archive(contents: dict[str, bytes] = CONTENTS) -> bytes:
    """A .tgz of members with these names, the same at any time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def install(monkeypatch, folder: Path) -> Path:
    """Let pages be built with the stand-in's files, without a registry; the archive."""
    path = folder / "runtime.tgz"
    path.write_bytes(archive())
    monkeypatch.setattr("diffusers_ict.web.build.runtime_archive", lambda: path)
    return path


@contextmanager
def registry(answer: bytes, status: int = 200, cut: int = 0):
    """(address, paths that were asked for) of a server that answers everything with this, less its last bytes."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) - cut])

        def log_message(self, *args) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)
