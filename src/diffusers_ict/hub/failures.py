"""What goes wrong with the Hub, in some words."""

import json
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import UserError, first_line

# What the client's HTTP errors derive from, whichever transport it uses.
TRANSPORT_ERRORS = (*HfHubHTTPError.__bases__, OSError)
REASONS = {
    412: "the repository was changed by others while files were sent; publish again",
    401: "the token is missing or not valid; log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write access, or another name",
    404: "there is no such user or organisation, or the token does not show it",
}


def reason_of(caught: Exception) -> str:
    """What went wrong, in some words."""
    # The client wraps what goes wrong in its upload threads and in a forced download.
    wrapped = isinstance(caught, (RuntimeError, ValueError)) and isinstance(caught.__cause__, TRANSPORT_ERRORS)
    error = caught.__cause__ if wrapped else caught
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(error.filename).name} cannot be read or written here: {error.strerror}"
    if status is not None:
        return REASONS.get(status, f"the Hub answered {status}; publish again later")
    if isinstance(error, (KeyError, TypeError, AttributeError, IndexError, json.JSONDecodeError)):
        return "the Hub's answer cannot be read; publish again later"  # of a proxy in between, or without an entry
    if isinstance(error, TRANSPORT_ERRORS):
        return "the Hub cannot be reached; publish again later"
    if type(error) is ValueError:  # by `validate`, and by the client's own test of the card
        return f"the Hub refuses the card: {' '.join(str(error).split())}"
    return f"{type(error).__name__}: {first_line(error)}" if error else "the upload failed"
