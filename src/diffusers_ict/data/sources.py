"""Data sets opened through the `datasets` library: folders of images, files, and names on the Hub."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import yaml
from huggingface_hub import metadata_load

from ..errors import UserError, first_line
from .transform import suffixes

SHARDS = 64  # of a stream of what was saved on disk
FILES = {".parquet": "parquet", ".arrow": "arrow"}
OTHER_FILES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".7z", ".rar", ".npy", ".csv", ".json", ".jsonl", ".h5")
# Paths are bytes, because names of files need not be in UTF-8.
PATHS = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("binary")}})


@dataclass(frozen=True)
class Pictures:
    """Stored pictures that are to be decoded."""

    stored: datasets.Dataset | np.ndarray  # {"bytes", "path"} for each picture; or an array [n, H, W] or [n, H, W, C]
    column: str = "image"  # of a data set
    labels: Sequence[int] | np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    key: Any = None  # what determines the pictures, as JSON types; an array is not cached and needs none
    label_remedy: str = "give `label_column`"  # what to do where labels are needed and there are none
    where: str = ""  # of a numbered picture, for messages


def read_folder(folder: Path, with_labels: bool) -> Pictures:
    """The images of a folder, sorted by their paths.

    The files are listed here: `datasets` would take words in their names as splits, unpack archives, and leave out
    files without a line in metadata.csv. The first sub-folder on the way to a picture is its class.

    Raises:
        UserError: no folder, no images, a link that leads back to a folder it lies in, or, with labels, images both in
            sub-folders and beside them.
    """
    if not folder.is_dir():
        remedy = "unpack it" if folder.suffix in OTHER_FILES else "give a file as `dataset_name`"
        remedy = f": {remedy}" if folder.is_file() else ""
        raise UserError(f"`train_data_dir` must be a folder of images, got {folder}{remedy}.")
    files = sorted(find_images(folder))
    if not files:
        raise UserError(
            f"`train_data_dir` {folder} holds no images: files in it or its sub-folders, with suffixes such as .png or "
            ".jpg, whose names do not begin with a dot."
        )
    parts = [file.relative_to(folder).parts for file in files]
    labels, names = _classes(folder, parts) if with_labels else (None, None)
    rows = {"image": [{"bytes": None, "path": os.fsencode(file)} for file in files]}
    key = ["folder", state_of_files(folder.resolve().joinpath(*part) for part in parts)]
    remedy = "move the images of each class into a sub-folder of its own (files such as metadata.csv are not read)"
    return Pictures(datasets.Dataset.from_dict(rows, features=PATHS), "image", labels, names, key, remedy)


def find_images(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files in a folder, at any depth, that are images by their names. Links are followed.

    What begins with a dot is passed over.

    Args:
        above: real paths of the folders on the way here.

    Raises:
        UserError: a link to a folder that it lies in, a link to nothing, or a folder that cannot be read.
    """
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
            yield from find_images(path, (*above, real))
        elif path.suffix.lower() in suffixes():
            if not path.is_file():
                raise UserError(f"{path} is a link to nothing, or no file of data: remove it.")
            yield path


def holds_images(folder: Path) -> bool:
    """Whether `find_images` finds any."""
    return next(find_images(folder), None) is not None


def _classes(folder: Path, parts: Sequence[tuple[str, ...]]) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """(labels, class names) of paths below the folder; both are None without sub-folders."""
    beside = [part[0] for part in parts if len(part) == 1]
    if len(beside) == len(parts):
        return None, None
    if beside:
        raise UserError(
            f"`class_conditional` takes each sub-folder of {folder} as a class, and {len(beside)} of {len(parts)} "
            f"images, such as {beside[0]}, lie in none: move them into one."
        )
    names = tuple(sorted({part[0] for part in parts}))
    for name in names:
        if name != name.encode(errors="replace").decode():
            raise UserError(
                f"a sub-folder of {folder} gives its class a name that is not in UTF-8, {os.fsencode(name)!r}: rename "
                "the folder."
            )
    number = {name: index for index, name in enumerate(names)}
    return [number[part[0]] for part in parts], names


def read_dataset(data: datasets.Dataset, image: str | None, label: str | None, with_labels: bool, key: Any) -> Pictures:
    """The images of a data set, and their labels where they are wanted.

    Args:
        image, label: names of columns, where they are not the only ones of their type.
        key: what determines the data, as JSON types.

    Raises:
        UserError: a column is missing, ambiguous or of the wrong type.
    """
    data = data.with_format(None)  # a format that was saved with the data may hide columns
    column = image_column_of(data.features, image)
    label = label_column_of(data.features, label) if with_labels else None
    feature = data.features.get(label)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    # Undecoded, so that a broken file can be named when its turn comes.
    stored = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    content, paths = (pc.struct_field(stored.data.column(column), field) for field in ("bytes", "path"))
    named = pc.unique(pc.filter(paths, pc.is_null(content))).to_pylist()  # files that rows name without holding them
    state = state_of_files(Path(path).absolute() for path in named if path)
    labels = None if label is None else data[label][:]
    return Pictures(stored, column, labels, names, [key, column, state])


def local_state(name: str) -> list[str]:
    """Path, sizes and times of a local file or of all files in a folder; empty for a name on the Hub."""
    path = Path(name)
    if not path.exists():
        return []
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [str(path.resolve()), state_of_files(file.absolute() for file in files)]


def state_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the path, size and time of modification of every file; a missing one counts as missing."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat() if path.exists() else None
        digest.update(os.fsencode(f"{path}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n"))
    return digest.hexdigest()


def check_settings(
    name: str | None, folder: str | None, config: str | None, split: str, image: str | None, label: str | None
) -> None:
    """Refuse names of configurations, splits and columns for data that have none.

    A local copy of a Hub data set has configurations and splits, and what was saved by `save_to_disk` may have splits.

    Raises:
        UserError: naming the setting.
    """
    path = Path(folder or name or "")
    saved = folder is None and _is_saved(path)
    what = "a folder of images" if folder else "a data set saved on disk" if saved else f"a {path.suffix} file"
    if not (folder or saved or path.suffix in (*FILES, ".npz")):
        return
    for setting, does, value, remedy in (
        ("dataset_config_name", "chooses a configuration of a Hub data set", config, "leave it out"),
        (
            *("dataset_split", "chooses a split of a Hub data set"),
            *(None if saved or split == "train" else split, "name the folder or file of that split itself"),
        ),
        ("image_column", "names a column or an array", folder and image, "leave it out"),
        ("label_column", "names a column or an array", folder and label, "leave it out"),
    ):
        if value is not None:
            raise UserError(f"`{setting}` {does}, and {what} has none, got {value}: {remedy}.")


def open_dataset(name: str, config: str | None, split: str, streaming: bool = False) -> Any:
    """A data set of the Hub, a folder of `save_to_disk` or a file, as a `Dataset` or an `IterableDataset`.

    Raises:
        UserError: it cannot be opened.
    """
    path = Path(name)
    try:
        if path.suffix in FILES:
            if not path.is_file():
                raise UserError(f"there is no file {name}.")
            return datasets.load_dataset(FILES[path.suffix], data_files=str(path), split="train", streaming=streaming)
        if path.is_file():
            raise UserError(
                "`dataset_name` must be a Hub data set, a folder of `save_to_disk`, or a file .parquet, .arrow or "
                f".npz, got {name}: unpack an archive and give its folder as `train_data_dir`, and save an array with "
                "`numpy.savez`."
            )
        if _is_saved(path):
            saved = _split_of(datasets.load_from_disk(name), name, split)
            return saved.to_iterable_dataset(num_shards=min(len(saved), SHARDS)) if streaming else saved
        if path.is_dir() and not _is_described(path) and holds_images(path):
            # The library would guess splits from names of folders and files, and leave out the other images.
            raise UserError(f"a folder of images is given as `train_data_dir`, got `dataset_name` {name}.")
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library raises its own types, and OSError, ValueError, KeyError
        raise UserError(f"the data set {name} cannot be opened: {first_line(error)}") from error


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _is_described(folder: Path) -> bool:
    """Whether a folder is a data set of the Hub: its README.md names the files of its splits."""
    try:
        metadata = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return not metadata.keys().isdisjoint(("configs", "dataset_info"))


def _split_of(saved: Any, name: str, split: str) -> Any:
    """The wanted split of what was saved, which may be one split alone."""
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"`dataset_split` must be one of {', '.join(saved)} for {name}, got {split}.")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise UserError(f"`dataset_split` must be left out, because {name} has no splits, got {split}.")
    return saved


def image_column_of(features: Any, wanted: str | None) -> str:
    """The wanted column, or the only one that holds images.

    Raises:
        UserError: it is missing, ambiguous or of the wrong type.
    """
    names = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # Parquet files written by other programs hold images as plain bytes, or as {"bytes", "path"}.
    names = names or [name for name, feature in features.items() if _holds(feature, "binary")]
    if wanted is None and len(names) != 1:
        raise UserError(
            f"the data must have one column of images, and has {len(names)} ({', '.join(features)}); name it with "
            "`image_column`."
        )
    column = _column(features, wanted, "image_column") if wanted is not None else names[0]
    if isinstance(features[column], datasets.Image) or any(_holds(features[column], t) for t in ("binary", "string")):
        return column
    raise UserError(
        f"`image_column` must name a column of images, encoded files as bytes, or paths of files, and {wanted} "
        f"holds {getattr(features[column], 'dtype', None) or type(features[column]).__name__}."
    )


def label_column_of(features: Any, wanted: str | None) -> str | None:
    """The wanted column, the only ClassLabel, or a column called label, labels or class; or None."""
    if wanted is not None:
        return _column(features, wanted, "label_column")
    names = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    names = names or [name for name in ("label", "labels", "class") if name in features]
    if len(names) > 1:
        raise UserError(f"several columns could be labels ({', '.join(names)}); name one with `label_column`.")
    return names[0] if names else None


def _holds(feature: Any, what: str) -> bool:
    if isinstance(feature, dict):
        return what == "binary" and _holds(feature.get("bytes"), what)
    return getattr(feature, "dtype", None) in (what, f"large_{what}")


def _column(features: Any, wanted: str, setting: str) -> str:
    if wanted not in features:
        raise UserError(f"the data has no column {wanted!r} for `{setting}`; it has {', '.join(features)}.")
    return wanted
