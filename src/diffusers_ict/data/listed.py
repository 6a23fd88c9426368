"""Labels of images that a file beside them lists: metadata.csv or metadata.jsonl, as folders on the Hub have them."""

from collections import Counter
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
        UserError: the file cannot be read, lacks a column, has not one line for each image, or has labels that are
            neither integers nor texts.
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
    files, names = list(map(str, rows["file_name"].to_pylist())), _names(images, file.parent)
    listed, there = Counter(files), set(names)
    for wrong, text in (
        ([name for name in names if name not in listed], "no line for {}"),
        ([name for name in files if name not in there], "a line for {}, which is no image there"),
        ([name for name, count in listed.items() if count > 1], "several lines for {}"),
    ):
        if wrong:
            which = f"{visible(min(wrong), LONGEST)} ({len(wrong)} such)"
            raise UserError(f"{file} must have one line for each image, and has {text.format(which)}: mend it.")
    labels = dict(zip(files, rows[column or USUAL].to_pylist()))
    given = [labels[name] for name in names]
    if all(type(label) is int for label in given):
        return given, None
    if not all(isinstance(label, str) and label for label in given):
        odd = next(label for label in given if not (isinstance(label, str) and label))
        raise UserError(f"labels in {file} must be all integers or all texts, got {visible(repr(odd), LONGEST)}.")
    classes = tuple(sorted(set(given)))
    number = {name: index for index, name in enumerate(classes)}
    return [number[label] for label in given], classes


def _names(images: Sequence[Path], folder: Path) -> list[str]:
    return [image.relative_to(folder).as_posix() for image in images]


def _read(file: Path) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(file) if file.suffix == ".csv" else pyarrow.json.read_json(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}; mend or remove it.") from error
