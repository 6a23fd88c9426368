"""Names of a model's classes: labels.json beside model_index.json, and names instead of numbers as labels."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .arguments import integer
from .files import write_json
from .names import LONGEST
from .repository import read_beside

LABELS_NAME = "labels.json"  # stock diffusers neither downloads nor reads it


def save_class_names(folder: str | os.PathLike, names: dict[int, str] | None, unlabelled: bool = False) -> None:
    """Write labels.json into a folder, or remove the one that is there where it would say nothing.

    Args:
        unlabelled: the last class of the network stands for none.
    """
    path = Path(folder) / LABELS_NAME
    if names is None and not unlabelled:
        path.unlink(missing_ok=True)
        return
    named = {"id2label": {str(number): name for number, name in (names or {}).items()}}
    write_json(path, named | ({"unlabelled": True} if unlabelled else {}))


def load_class_names(repository: str | os.PathLike, options: dict[str, Any]) -> tuple[dict[int, str] | None, bool]:
    """(names of classes by number, or None; whether the last class of the network stands for none) of a model.

    Args:
        repository: a folder or a Hub repository; options: what the pipeline was loaded with.

    Raises:
        UserError: labels.json cannot be read.
    """

    def parse(entries: dict[str, Any]) -> tuple[dict[int, str] | None, bool]:
        names = {int(number): _text(name) for number, name in entries["id2label"].items()}
        return names or None, entries.get("unlabelled", False) is True

    found = read_beside(repository, LABELS_NAME, options, parse, '{"id2label": {"0": NAME, ...}}')
    return (None, False) if found is None else found


def _text(name: Any) -> str:
    if isinstance(name, str) and name == name.encode(errors="replace").decode():
        return name
    raise TypeError(f"{name!a} is no text.")


def drawn_classes(names: dict[int, str] | None, classes: int) -> list[int]:
    """The classes that are drawn where no labels are given: those that have names, or all where none has one."""
    return [number for number in range(classes) if number in (names or ())] or list(range(classes))


def normal(name: str) -> str:
    """A name in the one Unicode form in which names are compared: systems of files write `é` in two ways."""
    return unicodedata.normalize("NFC", name)


def class_numbers(class_labels: Any, names: dict[int, str] | None) -> list[int | None]:
    """The class of each label: of one number or name, or of those in lists, arrays or tensors of any shape.

    What is neither a name nor an integer has None.

    Raises:
        ValueError: a name that no class has.
    """
    if isinstance(class_labels, (np.ndarray, np.generic, Tensor)):
        class_labels = class_labels.tolist()
    if isinstance(class_labels, Iterable) and not isinstance(class_labels, (str, bytes)):
        return [number for label in class_labels for number in class_numbers(label, names)]
    if not isinstance(class_labels, str):
        return [integer(class_labels)]
    if not names:
        raise ValueError(f"this model does not name its classes: give class_labels as integers, got {class_labels!r}.")
    if normal(class_labels) not in (known := [normal(name) for name in names.values()]):
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        cut = [name if len(name) < LONGEST else f"{name[:LONGEST]}…" for name in (*known[:10], class_labels)]
        shown = ", ".join(map(repr, cut[:-1]))
        raise ValueError(f"class_labels by name must be among {shown}{more}, got {cut[-1]!r}.")
    return [int(list(names)[known.index(normal(class_labels))])]
