"""Labels of images that a file beside them lists: metadata.csv or metadata.jsonl, as folders on the Hub have them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from ..errors import UserError, first_line
from ..names import LONGEST, visible

NAMES = ("metadata.csv", "metadata.jsonl")
USUAL = "label"  # the column that is taken where none is named


def find_list(folder: Path) -> Path | None:
    """The list of a folder of images, or None."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_labels(
    file: Path, images: Sequence[Path], column: str | None
) -> tuple[list[int], tuple[str, ...] | None] | None:
    """Labels of images, in their order, and names of classes where the labels are texts, which are numbered in order.

    Args:
        file: has a column file_name, with paths from its folder; other columns, such as captions, are passed over.
        column: of the labels; None for one called label, if there is one, else the answer is None.

    Raises:
        UserError: the file cannot be read, lacks a column or a line for an image, lists a file that is not there, or
            has labels that are neither integers nor texts.
    """
    rows = _read(file)
    if column is None and USUAL not in rows.column_names:
        return None
    for name in ("file_name", column or USUAL):
        if name not in rows.column_names:
            raise UserError(
                f"{file} must have the columns file_name and that of the labels, and has "
                f"{visible(', '.join(rows.column_names), LONGEST)}: `label_column` names the latter."
            )
    labels = dict(zip(map(str, rows["file_name"].to_pylist()), rows[column or USUAL].to_pylist()))
    names = [image.relative_to(file.parent).as_posix() for image in images]
    for wrong, text in ((set(names) - labels.keys(), "no line for"), (labels.keys() - set(names), "a line for")):
        if wrong:
            absent = ", which is no image there" if text == "a line for" else ""
            raise UserError(
                f"{file} has {text} {visible(min(wrong), LONGEST)}{absent} ({len(wrong)} such): complete it, or remove "
                "what is too much."
            )
    given = [labels[name] for name in names]
    if all(type(label) is int for label in given):
        return given, None
    if not all(isinstance(label, str) and label for label in given):
        odd = next(label for label in given if not (isinstance(label, str) and label))
        raise UserError(f"labels in {file} must be all integers or all texts, got {visible(repr(odd), LONGEST)}.")
    classes = tuple(sorted(set(given)))
    return [classes.index(label) for label in given], classes


def _read(file: Path) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(file) if file.suffix == ".csv" else pyarrow.json.read_json(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}; mend or remove it.") from error
