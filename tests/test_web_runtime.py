"""onnxruntime-web is what its pin says, from wherever it comes, and only the files of the page are unpacked."""

import hashlib
import socket

import pytest
from npm_stand_in import CONTENTS, archive, registry

from diffusers_ict.errors import UserError
from diffusers_ict.web import runtime
from diffusers_ict.web.runtime import FILES, WEBGPU_FILES, runtime_archive, unpack_runtime


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache's folder, empty, and the stand-in's archive as what is pinned."""
    monkeypatch.setattr(runtime, "cached_assets_path", lambda *names: tmp_path / "cache")
    pin(monkeypatch, archive())
    return tmp_path / "cache"


def pin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(runtime, "SHA256", hashlib.sha256(content).hexdigest())


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("damaged", [False, True])
def test_the_archive_is_fetched_once_from_the_registry_of_the_environment(cache, monkeypatch, damaged):
    if damaged:
        cache.mkdir()
        (cache / f"{runtime.VERSION}.tgz").write_bytes(archive()[:-1])
    with registry(archive()) as (address, asked):
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{address}/mirror/")
        for _ in range(2):
            kept = runtime_archive()
            assert kept.read_bytes() == archive()
    assert asked == [f"/mirror/onnxruntime-web/-/onnxruntime-web-{runtime.VERSION}.tgz"]
    assert names(cache) == {kept.name}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"answer": archive({"package/dist/other": b""})}, "invalid hash value"),
        ({"answer": archive(), "cut": 20}, "invalid hash value"),
        ({"answer": b"gone", "status": 404}, "404"),
    ],
    ids=["another file", "truncated", "missing"],
)
def test_what_is_not_the_pinned_archive_is_refused_and_not_kept(cache, monkeypatch, answer, message):
    with registry(**answer) as (address, _):
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
        with pytest.raises(UserError, match=f"cannot be fetched from .*{message}") as caught:
            runtime_archive()
    assert "NPM_CONFIG_REGISTRY" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not names(cache)


def test_without_a_registry_there_is_one_sentence(cache, monkeypatch):
    with socket.socket() as unused:  # bound, and nobody listens
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot be fetched from"):
            runtime_archive()
    assert not names(cache)


@pytest.mark.parametrize(("webgpu", "expected"), [(False, FILES), (True, (*FILES, *WEBGPU_FILES))])
def test_only_the_files_of_the_page_are_unpacked(tmp_path, webgpu, expected):
    outside = {"package/../../outside": b"x", "/outside": b"x", "../outside": b"x", "package/dist/ort.js": b"x"}
    (tmp_path / "archive.tgz").write_bytes(archive({**outside, **CONTENTS}))
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    unpack_runtime(tmp_path / "archive.tgz", target, webgpu)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {n: CONTENTS[f"package/dist/{n}"] for n in expected}
    assert names(tmp_path) == {"a", "archive.tgz"}
    assert names(tmp_path / "a") == {"b"}
