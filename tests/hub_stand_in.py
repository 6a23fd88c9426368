"""A read-only Hub on 127.0.0.1: enough of its protocol for `from_pretrained` of the real client."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def serve(repositories: dict[str, Path]):
    """Serve folders as model repositories, {"user/name": folder}; yields the address."""
    commit = "0" * 39 + "1"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _not_found(self, code: str) -> None:
            self._answer(404, b"{}", X_Error_Code=code, X_Repo_Commit=commit)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            for name, folder in repositories.items():
                if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                    return self._info(name, folder)
                if path.startswith(f"/api/models/{name}/tree/"):
                    return self._tree(folder)
                if path.startswith(f"/{name}/resolve/"):
                    return self._file(folder / path.split("/", 5)[5])
            return self._not_found("RepoNotFound")

        do_HEAD = do_GET

        def _info(self, name: str, folder: Path) -> None:
            files = [{"rfilename": p.relative_to(folder).as_posix()} for p in folder.rglob("*") if p.is_file()]
            info = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "siblings": files}
            info |= {"tags": [], "downloads": 0, "likes": 0}
            self._answer(200, json.dumps(info).encode(), Content_Type="application/json")

        def _tree(self, folder: Path) -> None:
            entries = [
                {"type": "file", "path": p.relative_to(folder).as_posix(), "size": p.stat().st_size, "oid": "1" * 40}
                for p in folder.rglob("*")
                if p.is_file()
            ]
            self._answer(200, json.dumps(entries).encode(), Content_Type="application/json")

        def _file(self, file: Path) -> None:
            if not file.is_file():
                return self._not_found("EntryNotFound")
            body = file.read_bytes()
            etag = hashlib.sha256(body).hexdigest()
            return self._answer(200, body, ETag=f'"{etag}"', X_Repo_Commit=commit, Accept_Ranges="bytes")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
