"""The server of the page: the headers that browsers ask for, this machine alone, and the files of one folder alone."""

import http.client
import os
import socket
import threading

import pytest

from diffusers_ict.errors import UserError
from diffusers_ict.web.server import PageHandler, serve

TYPES = {
    "/": "text/html; charset=utf-8",
    "/page.js": "text/javascript; charset=utf-8",
    "/style.css": "text/css; charset=utf-8",
    "/model.json": "application/json",
    "/model.onnx": "application/octet-stream",
    "/check.bin": "application/octet-stream",
    "/runtime/ort.mjs": "text/javascript; charset=utf-8",
    "/runtime/ort.wasm": "application/wasm",
}


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "page"
    (folder / "runtime").mkdir(parents=True)
    for path in TYPES:
        if path != "/":
            (folder / path[1:]).write_text(path)
    (folder / "index.html").write_text("/")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with serve(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=60)


def ask(server, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.content = answer.read()
    connection.close()
    return answer


@pytest.mark.parametrize("path", TYPES)
def test_files_have_their_types_and_the_page_is_isolated(server, path):
    answer = ask(server, path)
    assert answer.status == 200
    assert answer.content.decode() == path
    assert answer.headers["Content-Type"] == TYPES[path]
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    [
        *[
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/runtime/..%2f..%2fsecret.txt",
            "//secret.txt",
            "/runtime/",
            "/runtime",
        ],
        *["/link.txt", "/%00", "/page.js%00", "/page.js/", "/.", "/%ff", "/a%0d%0aSet-Cookie:b", "/" + "x" * 5000],
    ],
)
def test_files_outside_the_page_and_lists_of_files_are_not_served(server, path, capfd):
    answer = ask(server, path)
    assert answer.status == 404
    assert answer.content != b"secret"
    assert b"ort.mjs" not in answer.content
    assert capfd.readouterr() == ("", "")


def test_what_comes_into_the_folder_later_is_not_served(server, tmp_path):
    (tmp_path / "page" / "private.txt").write_text("secret")
    assert ask(server, "/private.txt").status == 404
    os.replace(tmp_path / "secret.txt", tmp_path / "other.txt")
    (tmp_path / "page" / "page.js").unlink()
    (tmp_path / "page" / "page.js").symlink_to(tmp_path / "other.txt")
    assert ask(server, "/page.js").status == 404


def test_only_our_own_address_is_answered(server):
    """A name that another site has point to this machine is no way to our files."""
    port = server.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert ask(server, "/page.js", Host=host).status == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        "localhost:1",
        f"127.0.0.1.evil.example:{port}",
        "",
    ):
        answer = ask(server, "/page.js", Host=host)
        assert (answer.status, b"/page.js" in answer.content) == (403, False), host
    with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
        visitor.sendall(b"GET /page.js HTTP/1.0\r\n\r\n")
        assert visitor.recv(100).startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize("begun", [b"", b"GET /page.js HTTP/1.0\r\nHost"])
def test_idle_visitors_are_sent_away(server, begun, monkeypatch, capfd):
    monkeypatch.setattr(PageHandler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as visitor:
        visitor.sendall(begun)
        while visitor.recv(1000):  # an empty answer is the end of the connection
            pass
    assert capfd.readouterr() == ("", "")


def test_only_this_machine_is_served(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


def test_a_visitor_who_leaves_in_the_middle_is_no_news(server, tmp_path, capfd):
    (tmp_path / "page" / "model.onnx").write_bytes(bytes(20_000_000))
    with socket.create_connection(("127.0.0.1", server.server_port)) as visitor:
        host = f"Host: 127.0.0.1:{server.server_port}"
        visitor.sendall(f"GET /model.onnx HTTP/1.0\r\n{host}\r\n\r\n".encode())
        visitor.recv(100)
    assert ask(server, "/page.js").status == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_or_does_not_exist_is_refused(server, tmp_path):
    for port, reason in ((server.server_port, "in use"), (70_000, "0-65535")):
        with pytest.raises(UserError, match=f"`port` {port} cannot be used: .*{reason}"):
            serve(tmp_path, port)
