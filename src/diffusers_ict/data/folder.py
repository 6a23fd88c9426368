"""Folders of images: every picture in them, and the first sub-folder on the way to it as its class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import UserError
from .cache import state_of_files
from .picture_file import suffixes
from .source import Source


def read_folder(folder: Path, with_labels: bool) -> Source:
    """The images of a folder, sorted by their paths.

    Where a picture lies deeper than in a sub-folder, the first sub-folder is its class. Pictures in no sub-folder at
    all have no labels.

    Raises:
        UserError: no folder, no images, a link that leads back to a folder it lies in, or, with labels, images both in
            sub-folders and beside them.
    """
    if folder.is_file():
        raise UserError(f"`train_data_dir` must be a folder of images, got {folder}: give a file as `dataset_name`.")
    if not folder.is_dir():
        raise UserError(f"`train_data_dir` must be a folder of images, got {folder}.")
    files = sorted(find_images(folder))
    if not files:
        raise UserError(
            f"`train_data_dir` {folder} holds no images: files in it or its sub-folders, with suffixes such as .png or "
            ".jpg, whose names do not begin with a dot."
        )
    parts = [file.relative_to(folder).parts for file in files]
    labels, names = _classes(folder, parts) if with_labels else (None, None)

    def identity() -> list[str]:
        root = folder.resolve()
        return ["folder", state_of_files(root.joinpath(*own) for own in parts)]

    def name_of(index: int) -> str:
        return os.fsencode(files[index]).decode("utf-8", "backslashreplace")

    return Source(files, len(files), labels, names, name_of, identity)


def holds_images(folder: Path) -> bool:
    """Whether `find_images` finds any."""
    return next(find_images(folder), None) is not None


def find_images(folder: Path) -> Iterator[Path]:
    """Files in a folder, at any depth, that are images by their names. Links are followed.

    What begins with a dot is passed over.

    Raises:
        UserError: a link to a folder that it lies in, a link to nothing, or a folder that cannot be read.
    """
    return _find(folder, ())


def _find(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """`above`: the real paths of the folders on the way here."""
    real = os.path.realpath(folder)
    if real in above:
        raise UserError(f"{folder} is a link to a folder that it lies in, so its images have no end: remove the link.")
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}); correct its permissions.") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
            yield from _find(path, (*above, real))
        elif path.suffix.lower() in suffixes():
            if not (entry.is_file(follow_symlinks=False) or path.is_file()):
                raise UserError(f"{path} is a link to nothing, or no file of data: remove it.")
            yield path


def _classes(folder: Path, parts: Sequence[tuple[str, ...]]) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """(labels, class names) of paths below the folder; both are None without sub-folders."""
    beside = [own[0] for own in parts if len(own) == 1]
    if len(beside) == len(parts):
        return None, None
    if beside:
        raise UserError(
            f"`class_conditional` takes each sub-folder of {folder} as a class, and {len(beside)} of {len(parts)} "
            f"images, such as {beside[0]}, lie in none: move them into one."
        )
    names = tuple(sorted({own[0] for own in parts}))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"a sub-folder of {folder} gives its class a name that is not in UTF-8, {os.fsencode(name)!r}: rename "
                "the folder."
            ) from error
    number = {name: index for index, name in enumerate(names)}
    return [number[own[0]] for own in parts], names
