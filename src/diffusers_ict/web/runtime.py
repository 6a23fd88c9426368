"""onnxruntime-web: its files from the registry of npm, pinned by version and hash, and kept in a cache."""

import base64
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import cached_assets_path

from ..errors import UserError, first_line
from ..files import atomic_file

VERSION = "1.30.0"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"  # its name in a registry
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's `integrity`
REGISTRY = "https://registry.npmjs.org"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU_FILES = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
SILENCE_SECONDS = 60.0  # of a registry that does not answer


def unpack_runtime(archive: Path, folder: Path, webgpu: bool = False) -> None:
    """Write the files that a page needs into a folder, which exists, and no others.

    Args:
        archive: what `runtime_archive` gave.
        webgpu: also those for WebGPU.

    Raises:
        UserError: the archive lacks one.
    """
    with tarfile.open(archive) as tar:
        for name in (*FILES, *WEBGPU_FILES * webgpu):
            try:
                source = tar.extractfile(f"package/dist/{name}")
            except KeyError:
                source = None
            if source is None:
                raise UserError(f"onnxruntime-web {VERSION} must have a file dist/{name}, and {archive} has none.")
            with source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)


def runtime_archive() -> Path:
    """The archive of onnxruntime-web, from the cache of Hugging Face's libraries, or else from the registry.

    The registry is that of the variable NPM_CONFIG_REGISTRY, or npm's own. The hash of a file in the cache is
    compared, too.

    Raises:
        UserError: the registry cannot be reached or sends something else.
    """
    archive = cached_assets_path("diffusers-ict", "onnxruntime-web") / f"{VERSION}.tgz"
    if archive.is_file() and _hash(archive) == SHA512:
        return archive
    address = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/onnxruntime-web/-/{ARCHIVE}"
    with atomic_file(archive) as temporary:
        try:
            with urllib.request.urlopen(address, timeout=SILENCE_SECONDS) as answer, open(temporary, "wb") as target:
                shutil.copyfileobj(answer, target)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # an answer, with its connection
            raise UserError(
                f"onnxruntime-web {VERSION} cannot be fetched from {address} ({first_line(error)}); connect, or name "
                "a registry that can be reached in NPM_CONFIG_REGISTRY."
            ) from error
        if (found := _hash(temporary)) != SHA512:
            raise UserError(
                f"onnxruntime-web {VERSION} must have the SHA-512 {SHA512[:12]}..., and {address} sent a file with "
                f"{found[:12]}...; try again, or name another registry in NPM_CONFIG_REGISTRY."
            )
    return archive


def _hash(file: Path) -> str:
    """SHA-512 in base64, as npm writes it."""
    with open(file, "rb") as content:
        digest = hashlib.sha512()
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()
