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


def scrubbed(text: str, known: re.Pattern | None = None) -> str:
    """A text without the user and password of addresses, without tokens, and without secrets of the environment.

    Args:
        known: `known_secrets()` of before, for those who have many texts.
    """
    if len(text) < SHORTEST:
        return text
    text = (known or known_secrets()).sub("(token)", USER_IN_URL.sub("(password)@", text))
    text = IN_HEADER.sub(r"\1(token)", IN_QUERY.sub(r"\1(token)", text))
    return TOKEN.sub("(token)", text)


def known_secrets() -> re.Pattern:
    """An expression for the token of the Hub and secrets of the environment, also those within addresses there."""
    found = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name.upper())}
    for value in os.environ.values():
        found.update(part for user in USER_IN_URL.findall(value) for part in _parts(user[:-1]))
    if (hub := sys.modules.get("huggingface_hub")) is not None:  # who does not use it has shown its token to nobody
        with suppress(OSError, ImportError, AttributeError):  # it is being imported
            found.add(hub.get_token() or "")
    longest_first = sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)" if longest_first else "(?!)")


def _parts(user: str) -> Iterator[str]:
    """The password of "user:password", or all where there is no colon, as written and as decoded."""
    password = user.partition(":")[2] or user
    yield from (password, unquote(password))
