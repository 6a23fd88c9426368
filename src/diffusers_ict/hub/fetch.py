"""A file of a model, from its folder or from the Hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ..errors import UserError, first_line


def fetch_file(repository: str, name: str) -> Path | None:
    """A file of a folder or of a Hub repository, or None where it has none of that name.

    Raises:
        UserError: the Hub does not answer, or does not show the repository.
    """
    path = Path(repository) / name
    if Path(repository).is_dir():
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(repository, name))
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(f"{name} of {repository} cannot be read from the Hub: {first_line(error)}") from error
