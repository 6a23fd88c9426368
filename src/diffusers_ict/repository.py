"""Small files beside a model's weights, in a folder or on the Hub, that stock diffusers does not know."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled


def find_beside(repository: str | os.PathLike, name: str, options: dict[str, Any]) -> Path | None:
    """The file `name` of a folder or of a Hub repository, or None.

    Args:
        options: what the pipeline was loaded with.
    """
    if os.path.isdir(repository):
        path = Path(repository) / name
        return path if path.is_file() else None
    names = ("cache_dir", "revision", "token", "local_files_only", "force_download")
    given = {name: options[name] for name in names if options.get(name) is not None}
    try:
        return Path(hf_hub_download(str(repository), name, **given))
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled):
        # There is none, or the Hub does not answer and the pipeline came from the cache, which has none.
        return None
