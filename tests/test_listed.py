"""Folders of images whose labels a metadata.csv or metadata.jsonl lists, and tars of WebDataset; remedies are run."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError

LABELS = {"a.png": "cat", "deep/b.png": "dog", "c.png": "cat"}


@pytest.fixture
def folder(tmp_path):
    """Images in no folders of classes; "deep" is none."""
    for number, name in enumerate(LABELS):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def write_list(folder, rows, column="label", suffix=".csv"):
    if suffix == ".csv":
        lines = [f"file_name,caption,{column}", *(f'{name},"a, b",{label}' for name, label in rows.items())]
    else:
        lines = [json.dumps({"file_name": name, column: label}) for name, label in rows.items()]
    (folder / f"metadata{suffix}").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("column", ["label", "species"])
def test_a_list_beside_the_images_gives_the_classes(folder, suffix, column):
    write_list(folder, LABELS, column, suffix)
    named = {} if column == "label" else {"label_column": column}
    images = load_images(train_data_dir=str(folder), class_conditional=True, **named)
    assert images.class_names == ("cat", "dog")
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 2, 1], "files in the order of their paths"
    assert images.labels.tolist() == [0, 0, 1]
    plain = load_images(train_data_dir=str(folder))
    assert (plain.labels, plain.class_names) == (None, None)
    write_list(folder, {name: number for number, name in enumerate(LABELS)}, column, suffix)
    assert load_images(train_data_dir=str(folder), class_conditional=True, **named).labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ({"a.png": "cat"}, None, r"has no line for c\.png \(2 such\)"),
        ({**LABELS, "d.png": "cat"}, None, r"has a line for d\.png \(1 such\), which is no image there"),
        ({**LABELS, "a.png": ""}, None, "must be all integers or all texts, got ''"),
        (LABELS, "kind", "has file_name, caption, label: `label_column` names the latter"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(folder, rows, column, message):
    write_list(folder, rows)
    with pytest.raises(UserError, match=message):
        load_images(train_data_dir=str(folder), class_conditional=True, label_column=column)


def test_two_lines_for_one_image_are_refused(folder):
    write_list(folder, LABELS)
    with (folder / "metadata.csv").open("a") as file:
        file.write("a.png,again,dog\n")
    with pytest.raises(UserError, match=r"has several lines for a\.png \(1 such\)"):
        load_images(train_data_dir=str(folder), class_conditional=True)


def test_the_remedy_for_a_folder_without_labels_works(folder):
    (folder / "deep" / "b.png").rename(folder / "b.png")
    with pytest.raises(UserError, match=r"or a metadata\.csv with the columns file_name and label"):
        load_images(train_data_dir=str(folder), class_conditional=True)
    with pytest.raises(UserError, match=r"`label_column` means nothing for a folder of images without metadata\.csv"):
        load_images(train_data_dir=str(folder), class_conditional=True, label_column="label")
    write_list(folder, {"a.png": 0, "b.png": 1, "c.png": 0})
    assert load_images(train_data_dir=str(folder), class_conditional=True).num_classes == 2
    with pytest.raises(UserError, match="a folder of images is given as `train_data_dir`"):
        load_images(dataset_name=str(folder), class_conditional=True)


def test_a_tar_of_webdataset_is_read_and_other_archives_have_remedies_that_work(folder, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number in range(3):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(picture, "PNG")
            for ending, content in (("png", picture.getvalue()), ("cls", str(number % 2).encode())):
                entry = tarfile.TarInfo(f"{number:03}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    shard = str(tmp_path / "shard.tar")
    images = load_images(dataset_name=shard, class_conditional=True)
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert images.labels.tolist() == [0, 1, 0]
    array = images.pixels[:, 0].numpy()
    np.save(tmp_path / "array.npy", array)
    with pytest.raises(UserError, match=r"or numpy\.savez for pictures"):
        load_images(dataset_name=str(tmp_path / "array.npy"))
    np.savez(tmp_path / "array.npz", images=array)
    assert len(load_images(dataset_name=str(tmp_path / "array.npz"))) == 3
