"""Small files beside a model's weights, in a folder or on the Hub, that stock diffusers does not know."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

from .errors import UserError, first_line
from .files import read_json

T = TypeVar("T")


def read_beside(
    repository: str | os.PathLike, name: str, options: dict[str, Any], parse: Callable[[dict[str, Any]], T], form: str
) -> T | None:
    """What the JSON file `name` of a folder or of a Hub repository holds, or None where there is none.

    Args:
        options: what the pipeline was loaded with.
        parse: makes it of the entries; form: of the entries, in words.

    Raises:
        UserError: the file cannot be read, or `parse` makes nothing of it.
    """
    path = _find(repository, name, options)
    if path is None:
        return None
    try:
        return parse(read_json(path))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} must hold {form}: {first_line(error)}") from error


def _find(repository: str | os.PathLike, name: str, options: dict[str, Any]) -> Path | None:
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
