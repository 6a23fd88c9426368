"""A Hub on 127.0.0.1 that keeps repositories in memory: what the real client needs to read and to write.

Reading: model info, tree, resolve. Writing: create, preupload, LFS batch with PUT and verify, commit as ndjson.
Cards are held to what the Hub verifies in them: licence, datasets and model-index. Earlier commits can be read. Private
repositories do not exist for those without a token.

It also misbehaves, in each way of the table `FAULTS`, until `hub.fault` is None again. Every fault lets an upload fail.
The client needs HF_HUB_DISABLE_XET=1, or it uses a route that this Hub does not have; HF_HUB_OFFLINE must not be set.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LICENSES = {"apache-2.0", "cc-by-4.0", "cc0-1.0", "mit", "other", "unknown"}  # some of those that the Hub knows
LFS_FROM = 10_000  # bytes
DATASET = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def mistakes(card: str) -> list[str]:
    """What the Hub would refuse in a card's metadata, by the specification in huggingface/hub-docs modelcard.md."""
    head = re.match(r"---\n(.*?)\n---\n", card, re.S)
    try:
        data = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError:
        return ["the metadata is no YAML"]
    found = []
    if "license" in data and data["license"] not in LICENSES:
        found.append(f'"license" must be one of {sorted(LICENSES)}')
    datasets = data.get("datasets", [])
    if not isinstance(datasets, list) or not all(isinstance(d, str) and DATASET.fullmatch(d) for d in datasets):
        found.append('"datasets" must be a list of dataset ids')
    for index in data.get("model-index", []):
        for result in index["results"]:
            kinds = [result["task"]["type"], result["dataset"]["type"], *(m["type"] for m in result["metrics"])]
            if not all(isinstance(kind, str) and DATASET.fullmatch(kind) for kind in kinds):
                found.append(f'"model-index" has a type that is no id among {kinds}')
            if not (result["dataset"]["name"] and all(isinstance(m["value"], (int, float)) for m in result["metrics"])):
                found.append('"model-index" needs a dataset\'s name and values of metrics')
    return found


@dataclass
class Repository:
    """Files of the newest commit and, by their names, of earlier ones, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    private: bool = False
    earlier: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The name of a commit, or that of the newest, and its files."""
        return (revision, self.earlier[revision]) if revision in self.earlier else (self.sha, self.files)

    @property
    def sha(self) -> str:
        return f"{len(self.commits) + 1:040x}"


@dataclass(frozen=True)
class Fault:
    """One way to misbehave.

    Attributes:
        where: part of the paths of the requests that it meets.
        answer: a status; "{}"; "reset", the connection ends without an answer; "silent", there is never one; "half", it
            ends in the middle of what is sent, or, where nothing is, of the right answer; "", the right one.
        card: the README.md that every repository then has, or None for its own.
    """

    where: str = ""
    answer: int | str = ""
    card: bytes | None = None


CALLS = {
    "create": "/api/repos/create",
    "card": "/resolve/",
    "validation of the card": "/api/validate-yaml",
    "preupload": "/preupload/",
    "LFS batch": "/lfs/objects/batch",
    "storage": "/storage/",
    "verification": "/verify",
    "commit": "/commit/",
    "any call": "",
}
HARMLESS = ("validation of the card: {}", "storage: {}", "verification: {}", "any call: {}", "card: half")
FAULTS: dict[str, Fault] = {
    f"{call}: {answer}": Fault(where, answer)
    for call, where in CALLS.items()
    for answer in ("{}", "reset", "silent", "half", 500, 503)
    if f"{call}: {answer}" not in HARMLESS
} | {
    "a card that is not UTF-8": Fault(card=b"---\nlicense: mit\n---\n\xff\xfe"),
    "a card of broken YAML": Fault(card=b"---\nlicense: [mit\n---\ntext"),
    "a card whose metadata is a list": Fault(card=b"---\n- mit\n---\ntext"),
}


@dataclass
class Hub:
    """State of the stand-in.

    Attributes:
        failures: (part of a path, status) answered once each, in order, to requests that match.
        fault: how it misbehaves all the time, or None.
        edited_meanwhile: README.md that somebody writes just before the next commit arrives, or None.
        requests: "METHOD path" of everything that came, and "GONE path" where a client left without an answer.
        bodies: every byte that came in.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    failures: list[tuple[str, int]] = field(default_factory=list)
    fault: Fault | None = None
    edited_meanwhile: bytes | None = None
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    address: str = ""

    def add_folder(self, name: str, folder: Path) -> None:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[name] = Repository(files, ["first"])


def oid(content: bytes) -> str:
    """What the Hub calls a file by: SHA-256 of large ones, git's blob hash of others."""
    if len(content) >= LFS_FROM:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A client that is killed in the middle is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.halved else body)
            self.close_connection |= self.halved

    def handle_any(self) -> None:
        path, fault = unquote(urlsplit(self.path).path), self.hub.fault
        self.halved = fault is not None and fault.answer == "half" and fault.where in path
        if self.halved and int(self.headers.get("Content-Length") or 0):
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self.misbehave("reset", path)
        body = self._body()
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.bodies.append(body)
        for failure in self.hub.failures:
            if failure[0] in path:
                self.hub.failures.remove(failure)
                garbled = failure[1] >= 500  # a proxy's page
                return self.answer(failure[1], b"<html>planted</html>" if garbled else {"error": "planted"})
        if fault is not None and fault.answer not in ("", "half") and fault.where in path:
            return self.misbehave(fault.answer, path)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            errors = mistakes(json.loads(body)["content"])
            told: object = {"errors": [{"message": text} for text in errors], "warnings": []}
            if self.headers["Accept"] == "text/plain":
                told = "\n".join(f"- Error: {text}" for text in errors).encode()
            return self.answer(400 if errors else 200, told)
        if path.startswith("/storage/"):
            self.hub.objects[path.removeprefix("/storage/")] = body
            return self.answer(200)
        if path == "/verify":
            self.hub.verified.add(json.loads(body)["oid"])
            return self.answer(200, {})
        for name, repository in self.hub.repositories.items():
            api = f"/api/{name}" if name.startswith("spaces/") else f"/api/models/{name}"
            if path.startswith((f"{api}/", f"/{name}/", f"/{name}.git/")) or path == api:
                if repository.private and "Authorization" not in self.headers:
                    return self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
                return self.repository(name, repository, path, body)
        return self.answer(404, {}, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def misbehave(self, answer: int | str, path: str) -> None:
        if isinstance(answer, int):
            return self.answer(answer, b"<html>planted</html>")
        if answer == "{}":
            return self.answer(200, {})
        if answer == "silent":
            self.rfile.read(1)  # until the client hangs up
            self.hub.requests.append(f"GONE {path}")
        else:  # what is sent is lost, as when a router forgets the connection
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def create(self, wanted: dict) -> None:
        name = "/".join(filter(None, [wanted.get("organization") or "someone", wanted["name"]]))
        if wanted.get("type") == "space":
            if wanted.get("sdk") != "static":
                return self.answer(400, {"error": "a Space needs an sdk, here static"})
            name = f"spaces/{name}"
        url = {"url": f"{self.hub.address}/{name}", "name": name}
        if name in self.hub.repositories:
            return self.answer(409, {**url, "error": "exists"})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        return self.answer(200, url)

    def repository(self, name: str, repository: Repository, path: str, body: bytes) -> None:
        if "/resolve/" in path:
            return self.resolve(repository, *path.split("/resolve/")[1].split("/", 1))
        if "/preupload/" in path:
            wanted = json.loads(body)["files"]
            return self.answer(200, {"files": [self.mode(repository, file) for file in wanted]})
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer(200, {"transfer": "basic", "objects": list(map(self.lfs, json.loads(body)["objects"]))})
        if "/commit/" in path:
            return self.commit(name, repository, [json.loads(line) for line in body.splitlines()])
        sha, held = repository.at(path.partition("/tree/" if "/tree/" in path else "/revision/")[2].partition("/")[0])
        if "/tree/" in path:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": oid(c)} for p, c in held.items()]
            return self.answer(200, entries)
        files = [{"rfilename": p, **self.blob(content)} for p, content in held.items()]
        info = {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": repository.private}
        return self.answer(200, {**info, "siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def blob(self, content: bytes) -> dict:
        if len(content) >= LFS_FROM:
            return {"size": len(content), "lfs": {"sha256": oid(content), "size": len(content), "pointerSize": 130}}
        return {"size": len(content), "blobId": oid(content)}

    def mode(self, repository: Repository, file: dict) -> dict:
        mode = "lfs" if file["size"] >= LFS_FROM else "regular"
        known = oid(repository.files[file["path"]]) if file["path"] in repository.files else None
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known}

    def lfs(self, wanted: dict) -> dict:
        if wanted["oid"] in self.hub.verified:
            return wanted
        upload = {"href": f"{self.hub.address}/storage/{wanted['oid']}"}
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{self.hub.address}/verify"}}}

    def commit(self, name: str, repository: Repository, lines: list[dict]) -> None:
        if self.hub.edited_meanwhile is not None:  # by somebody in the browser, while files were sent
            repository.files["README.md"], self.hub.edited_meanwhile = self.hub.edited_meanwhile, None
            repository.commits.append("Edit README.md")
        parent = next(line["value"].get("parentCommit") for line in lines if line["key"] == "header")
        if parent not in (None, repository.sha):
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        repository.earlier[repository.sha] = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository.files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        url = f"{self.hub.address}/{name}/commit/{repository.sha}"
        self.answer(200, {"success": True, "commitOid": repository.sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repository: Repository, revision: str, path: str) -> None:
        card = self.hub.fault.card if self.hub.fault else None
        planted = path == "README.md" and card is not None
        sha, held = repository.at(revision)
        content = card if planted else held.get(path)
        sha = hashlib.sha1(card).hexdigest() if planted else sha  # clients keep what a commit has
        if content is None:
            return self.answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        return self.answer(200, content, ETag=f'"{oid(content)}"', X_Repo_Commit=sha, Accept_Ranges="bytes")


@contextmanager
def serve(hub: Hub):
    """Serve `hub` until the block ends; its address is in `hub.address`."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)
