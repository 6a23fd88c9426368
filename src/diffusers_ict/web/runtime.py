"""onnxruntime-web: its files from the registry of npm, pinned by version and hash, and kept in a cache."""

import os
import shutil
import tarfile
import urllib.error
from pathlib import Path

from huggingface_hub import cached_assets_path
from torch.hub import download_url_to_file

from ..credentials import scrubbed
from ..errors import UserError, first_line
from ..files import sha256
from ..progress import told

VERSION = "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of the archive
REGISTRY = "https://registry.npmjs.org"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU_FILES = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")


def unpack_runtime(archive: Path, folder: Path, webgpu: bool = False) -> None:
    """Write the files that a page needs, and no others, from the pinned archive into a folder, which exists.

    Args:
        webgpu: also those for WebGPU.
    """
    with tarfile.open(archive) as tar:
        for name in (*FILES, *WEBGPU_FILES * webgpu):
            source = tar.extractfile(f"package/dist/{name}")
            assert source is not None  # the pinned archive has these files
            with source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)


def runtime_archive() -> Path:
    """The archive of onnxruntime-web, from the cache of Hugging Face's libraries, or else from the registry.

    The registry is that of NPM_CONFIG_REGISTRY, or npm's own. The hash of a file in the cache is compared, too.

    Raises:
        UserError: the registry cannot be reached or sends something else.
    """
    archive = cached_assets_path("diffusers-ict", "onnxruntime-web") / f"{VERSION}.tgz"
    if archive.is_file() and sha256(archive) == SHA256:
        return archive
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
    address = f"{registry}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        with told("fetching onnxruntime-web"):
            download_url_to_file(address, str(archive), hash_prefix=SHA256, progress=False)
    except Exception as error:  # of the network, of the address, or of the hash
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # an answer, with its connection
        raise UserError(
            scrubbed(f"onnxruntime-web {VERSION} cannot be fetched from {address} ({first_line(error)}); connect, ")
            + "try again, or name another registry in NPM_CONFIG_REGISTRY."
        ) from error
    return archive
