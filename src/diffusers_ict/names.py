"""Names that others chose, written so that they stand for themselves alone: in messages, shells, Markdown and Python.

Files, folders, classes and columns may be called anything: lines of text, escape sequences, marks that turn the
direction of writing, bytes that are no text, the syntax of the place where they are shown.
"""

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable

from .credentials import scrubbed

LONGEST = 80  # characters of a name that are shown
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, marks of direction, halves of characters, other line breaks
JOINERS = "\u200c\u200d"  # of letters in Persian, and of emoji
COMMENT = "<!--"  # ends a section of a card, wherever it stands
MARKUP = re.compile(r"([\\`*|~$<&]|\](?=[(\[:])|(?<!\w)_|_(?!\w))")


def visible(name: object, longest: int | None = None) -> str:
    r"""A name or a path in one line, with what nobody can see as escapes such as \n, \x1b or \u202e.

    Args:
        longest: how many characters are left of it at most.
    """
    name = str(name)
    if longest is not None and len(name) > longest:
        name = name[: longest - 1] + "…"
    return "".join(char.encode("unicode_escape").decode() if _hidden(char) else char for char in name)


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in INVISIBLE and char not in JOINERS


def operand(path: object) -> str:
    """A path as a word of a command that no program takes for a flag, whatever it begins with."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def shell(words: Iterable[str]) -> str:
    """The words of a command as one line that a POSIX shell reads as these words, without credentials."""
    return " ".join(_shell_word(scrubbed(word)) for word in words)


def _shell_word(word: str) -> str:
    if COMMENT not in word and not any(map(_hidden, word)):
        return shlex.quote(word)
    return f"$'{''.join(map(_in_quotes, word))}'"  # as bash, zsh and POSIX 2024 have it


def _in_quotes(char: str) -> str:
    if not _hidden(char) and char not in "\\'<":
        return char
    try:
        coded = os.fsencode(char)
    except UnicodeEncodeError:  # half of a character, which no file name holds
        coded = char.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in coded)


def markdown(name: object) -> str:
    """A name as text of Markdown, also in a heading, a link or a cell of a table."""
    return MARKUP.sub(_escaped, visible(str(name), LONGEST))


def _escaped(markup: re.Match) -> str:
    return {"<": "&lt;", "&": "&amp;"}.get(markup[1], f"\\{markup[1]}")


def code(name: object) -> str:
    """A name as code within a line of Markdown, not in a table; backticks become apostrophes."""
    plain = " ".join(visible(str(name), LONGEST).replace("`", "'").split())
    return f"`{_uncommented(plain)}`"


def block(text: str) -> str:
    """A text as one line of a block of code in Markdown."""
    return _uncommented(visible(text))


def _uncommented(text: str) -> str:
    return text.replace(COMMENT, "<! --")


def literal(name: str) -> str:
    """A name as a literal of Python and JSON."""
    return json.dumps(name, ensure_ascii=any(map(_hidden, name))).replace("<", "\\u003c" if COMMENT in name else "<")
