"""Data sets opened through the `datasets` library: folders of images, files, and names on the Hub."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.compute as pc
from huggingface_hub import metadata_load

from ..errors import LabelsError, UserError, first_line
from .listed import find_list, read_labels
from .own_output import check_not_written
from .settings import DataSettings
from .transform import suffixes

SHARDS = 64  # of a stream of what was saved on disk
FILES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
# Paths are bytes, because names of files need not be in UTF-8.
PATHS = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("binary")}})


class Stored(NamedTuple):
    """Pictures as they are stored, and their labels where they are wanted and there."""

    pictures: datasets.Dataset | np.ndarray  # a data set with the column "image", or [n, H, W] or [n, H, W, C]
    labels: Sequence[int] | np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    key: Any = None  # what determines the pictures, as JSON types; an array is not cached and needs none


def refuse(settings: DataSettings, source: str, *names: str) -> None:
    """Refuse settings that mean nothing for a source."""
    for name in names:
        if getattr(settings, name) != getattr(DataSettings, name):
            raise UserError(f"`{name}` means nothing for {source}, got {getattr(settings, name)}: leave it out.")


def read_folder(settings: DataSettings, with_labels: bool) -> Stored:
    """The images of a folder, sorted by their paths.

    Their classes are those that metadata.csv or metadata.jsonl lists, or else the first sub-folder on the way to each.

    The files are listed here: `datasets` would take words in their names as splits, unpack archives, and leave out
    files without a line in metadata.csv.

    Raises:
        UserError: no folder, no images, a link that leads back to a folder it lies in, or, with labels, images both in
            sub-folders and beside them.
    """
    refuse(settings, "a folder of images", "dataset_config_name", "dataset_split", "image_column")
    folder = Path(settings.train_data_dir or "").resolve()
    if not folder.is_dir():
        remedy = ": unpack an archive, and give a data file as `dataset_name`" if folder.is_file() else ""
        raise UserError(f"`train_data_dir` must be a folder of images, got {settings.train_data_dir}{remedy}.")
    files = sorted(find_images(folder))
    if not files:
        raise UserError(
            f"`train_data_dir` {folder} holds no images: files in it or its sub-folders, with suffixes such as .png or "
            ".jpg, whose names do not begin with a dot."
        )
    check_not_written(folder, {file.parent for file in files})
    rows = {"image": [{"bytes": None, "path": os.fsencode(file)} for file in files]}
    stored = Stored(datasets.Dataset.from_dict(rows, features=PATHS), key=state_of(files))
    listed = find_list(folder)
    if listed is None:
        refuse(settings, "a folder of images without metadata.csv or metadata.jsonl", "label_column")
    elif with_labels and (found := read_labels(listed, files, settings.label_column)) is not None:
        labels, class_names = found
        return stored._replace(labels=labels, class_names=class_names)
    beside = [file for file in files if file.parent == folder]
    if not with_labels or len(beside) == len(files):
        return stored
    if beside:
        raise LabelsError(
            f"`class_conditional` takes each sub-folder of {folder} as a class, and {len(beside)} of {len(files)} "
            f"images, such as {beside[0].name}, lie in none: move them into one."
        )
    classes = [file.relative_to(folder).parts[0] for file in files]
    names = tuple(sorted(set(classes)))
    for name in names:
        if name != name.encode(errors="replace").decode():
            raise UserError(f"the class {os.fsencode(name)!r} has a name that is not in UTF-8: rename its folder.")
    number = {name: index for index, name in enumerate(names)}
    return stored._replace(labels=[number[name] for name in classes], class_names=names)


def find_images(top: Path) -> Iterator[Path]:
    """Files in a folder, at any depth, that are images by their names. Links are followed.

    What begins with a dot is passed over.

    Raises:
        UserError: a link to a folder that it lies in, a link to nothing, or a folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}); correct its permissions.")

    for name, folders, files in os.walk(top, onerror=unreadable, followlinks=True):
        folder = Path(name)
        above = (parent for parent in folder.parents if parent.is_relative_to(top))
        if folder.is_symlink() and any(folder.samefile(parent) for parent in above):
            raise UserError(f"{folder} is a link to a folder that it lies in: remove the link.")
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (folder / name for name in files if not name.startswith(".")):
            if path.suffix.lower() in suffixes():
                if not path.is_file():
                    raise UserError(f"{path} is a link to nothing, or no file of data: remove it.")
                yield path


def holds_images(folder: Path) -> bool:
    """Whether `find_images` finds any."""
    return next(find_images(folder), None) is not None


def state_of(files: Iterable[Path]) -> str:
    """SHA-256 of the path, size and time of modification of every file; a missing one has neither."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat() if path.exists() else None
        digest.update(os.fsencode(f"{path}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n"))
    return digest.hexdigest()


def read_dataset(settings: DataSettings, with_labels: bool, data: datasets.Dataset | None = None) -> Stored:
    """The images of a data set, by default of that which the settings name, and their labels where they are wanted.

    Raises:
        UserError: it cannot be opened, or a column is missing, ambiguous or of the wrong type.
    """
    data = (open_dataset(settings) if data is None else data).with_format(None)  # a saved format may hide columns
    whole = data._fingerprint
    data = with_columns(data, settings, with_labels)
    content, paths = (pc.struct_field(data.data.column("image"), field) for field in ("bytes", "path"))
    named = pc.unique(pc.filter(paths, pc.is_null(content))).to_pylist()  # files that rows name without holding them
    key = [whole, settings.image_column, state_of(Path(path).absolute() for path in named if path)]
    labels = data["label"][:] if "label" in data.column_names else None
    return Stored(data.select_columns(["image"]), labels, class_names_of(data), key)


def open_dataset(settings: DataSettings, streaming: bool = False) -> Any:
    """A data set of the Hub, a folder of `save_to_disk` or a file, as a `Dataset` or an `IterableDataset`.

    Raises:
        UserError: it cannot be opened.
    """
    name, split = str(settings.dataset_name), settings.dataset_split
    path = Path(name)
    try:
        if builder := FILES.get(path.suffix):
            refuse(settings, f"a {path.suffix} file", "dataset_config_name", "dataset_split")
            return datasets.load_dataset(builder, data_files=name, split=split, streaming=streaming)
        if path.is_file():
            raise UserError(
                "`dataset_name` must be a Hub data set, a folder of save_to_disk, or a file .parquet, .arrow, .tar "
                f"(WebDataset) or .npz, got {name}: unpack an archive and give its folder as `train_data_dir`; a .npy "
                "file needs `normalize`, or numpy.savez for pictures."
            )
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            refuse(settings, "a data set saved on disk", "dataset_config_name")
            saved = datasets.load_from_disk(name)
            if isinstance(saved, datasets.Dataset):  # a single split
                saved = {"train": saved, str(saved.split or "train"): saved}
            if split not in saved:
                raise UserError(f"`dataset_split` must be one of {', '.join(saved)} for {name}, got {split}.")
            data = saved[split]
            if not streaming:
                return data
            # A saved format may hide columns, of which the library makes no stream.
            return data.with_format(None).to_iterable_dataset(num_shards=min(len(data), SHARDS))
        readme = path / "README.md"  # of a data set of the Hub, it names the files of its splits
        described = {"configs", "dataset_info"} & set((metadata_load(readme) if readme.exists() else None) or ())
        if path.is_dir() and not described and holds_images(path):
            # The library would guess splits from names of folders and files, and leave out the other images.
            raise UserError(f"a folder of images is given as `train_data_dir`, got `dataset_name` {name}.")
        return datasets.load_dataset(name, settings.dataset_config_name, split=split, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library raises its own types, and OSError, ValueError, KeyError
        raise UserError(f"the data set {name} cannot be opened: {first_line(error)}") from error


def with_columns(data: Any, settings: DataSettings, with_labels: bool) -> Any:
    """A data set, streamed or not, with the columns "image", undecoded, and "label", where it is wanted and there.

    Images are a column of images, or else of encoded files, which other programs store as plain bytes, or as {"bytes",
    "path"}. Labels are a `ClassLabel`, or else a column called label, labels, class or cls (WebDataset).

    Raises:
        UserError: a column is missing, ambiguous or of the wrong type.
    """
    types = {name: type_of(feature) for name, feature in data.features.items()}
    images, stored = ([n for n in types if types[n] == kind] for kind in ("Image", "binary"))
    image = pick(types, "image_column", settings.image_column, without_conditions(images or stored, settings))
    if image is None or types[image] not in ("Image", "binary", "string"):
        raise UserError(
            "`image_column` must name a column of images, encoded files as bytes, or paths of files, got "
            f"{listed(types if image is None else {image: types[image]})}."
        )
    columns, label = {image: "image"}, label_column(types, settings, image) if with_labels else None
    if label is not None:
        columns[label] = "label"
    data, renamed = data.select_columns(list(columns)), {old: new for old, new in columns.items() if old != new}
    if renamed.keys() & set(renamed.values()):  # an image column called label: streams do not rename both at once
        data = data.rename_columns({old: f"own {old}" for old in renamed})
        renamed = {f"own {old}": new for old, new in renamed.items()}
    data = data.rename_columns(renamed)
    return data.cast_column("image", datasets.Image(decode=False))  # a broken file can be named when its turn comes


def label_column(types: dict[str, str], settings: DataSettings, image: str) -> str | None:
    """The column of the labels, by the types of the columns: a `ClassLabel`, or else one with a usual name, or None."""
    classes = [name for name in types if types[name] == "ClassLabel"]
    named = [name for name in ("label", "labels", "class", "cls") if name in types and name != image]
    return pick(types, "label_column", settings.label_column, classes or named)


def class_names_of(data: Any) -> tuple[str, ...] | None:
    """Names of the classes of a data set whose labels are a `ClassLabel`."""
    names = getattr(data.features.get("label"), "names", None)
    return None if names is None else tuple(names)


def pick(columns: dict[str, str], setting: str, wanted: str | None, suitable: Sequence[str]) -> str | None:
    """The column or array that a setting names, or the only suitable one, or None.

    Args:
        columns: what can be named, and the type of each.

    Raises:
        UserError: there is none of the wanted name, or several are suitable.
    """
    if wanted is not None and wanted not in columns:
        raise UserError(f"`{setting}` must name one of {listed(columns)}, got {wanted}.")
    if wanted is None and len(suitable) > 1:
        raise UserError(f"several columns or arrays could be meant by `{setting}`: {', '.join(suitable)}; name one.")
    return wanted or next(iter(suitable), None)


def without_conditions(names: Sequence[str], settings: DataSettings) -> Sequence[str]:
    """Columns that may be the images: all but that of the conditions, unless it is the only one."""
    return [name for name in names if name != settings.conditioning_image_column] or names


def listed(columns: dict[str, str]) -> str:
    """Columns or arrays with their types, for messages."""
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"


def type_of(feature: Any) -> str:
    """The type of a column; of {"bytes", "path"} that of the bytes."""
    feature = feature.get("bytes", feature) if isinstance(feature, dict) else feature
    return feature.dtype.removeprefix("large_") if isinstance(feature, datasets.Value) else type(feature).__name__
