"""Passwords and tokens, which are neither shown nor written: the one place that takes them out of a text."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import unquote

USER_IN_URL = re.compile(r"(?<=://)(?:[^\s/?#@:]*:(?!\d+[/?#])[^\s@]*|[^\s/?#@]*)@", re.ASCII)
IN_QUERY = re.compile(r"([?&;][\w.-]*(?:token|password|secret|signature|key)=)[^\s&'\"]+", re.I)
IN_HEADER = re.compile(r"(\bbearer\s+|authorization:\s*\w+\s+)[\w.~+/=-]{8,}", re.I)
TOKEN = re.compile(r"\b(?:hf|npm|ghp)_[A-Za-z0-9]{16,}")
SECRET_VARIABLE = re.compile(r"(?:TOKEN|PASSWORD|SECRET|API_KEY)$")
SHORTEST = 6  # characters of a secret that is sought anywhere: shorter ones are also words


def scrubbed(text: str) -> str:
    """A text without the user and password of addresses, without tokens, and without secrets of the environment."""
    text = USER_IN_URL.sub("(password)@", text)
    for secret in sorted(_known(), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "(token)", text)
    text = IN_HEADER.sub(r"\1(token)", IN_QUERY.sub(r"\1(token)", text))
    return TOKEN.sub("(token)", text)


def _known() -> set[str]:
    """The token of the Hub, and secrets in environment variables, also where only parts of an address are quoted."""
    found = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name.upper())}
    for value in os.environ.values():
        found.update(part for user in USER_IN_URL.findall(value) for part in _parts(user[:-1]))
    if (hub := sys.modules.get("huggingface_hub")) is not None:  # who does not use it has shown its token to nobody
        with suppress(OSError):
            found.add(hub.get_token() or "")
    return {secret for secret in found if len(secret) >= SHORTEST}


def _parts(user: str) -> Iterator[str]:
    """The password of "user:password", or all where there is no colon, as written and as decoded."""
    password = user.partition(":")[2] or user
    yield from (password, unquote(password))
