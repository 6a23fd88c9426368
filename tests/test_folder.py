"""Folders of images: every image in them is used, and its class is the first sub-folder on the way to it."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image
from test_images import folder, solid

from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError


def numbered(tmp_path: Path, names: list[str]) -> str:
    """A folder of grey images; the one at place i has the value i."""
    return folder(tmp_path, {name: solid("L", colour=number) for number, name in enumerate(names)})


def values(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("classes", [("test", "train", "validation"), ("cat", "dog", "test-set"), ("a", "b", "train")])
def test_no_name_of_a_class_is_a_split(tmp_path, classes):
    where = numbered(tmp_path, [f"{name}/{i}.png" for name in classes for i in range(4)])
    all_named_like_splits = classes == ("test", "train", "validation")
    with pytest.warns(UserWarning, match="named like splits") if all_named_like_splits else nullcontext():
        images = load_images(train_data_dir=where, class_conditional=True)
    with pytest.warns(UserWarning, match="named like splits") if all_named_like_splits else nullcontext():
        assert load_images(train_data_dir=where).num_classes is None
    assert values(images) == list(range(12))
    assert images.class_names == classes
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_no_name_of_a_file_is_a_split_and_other_files_change_nothing(tmp_path):
    where = numbered(tmp_path, ["1.png", "my train 7.png", "test_1.png", "validation.png", "x.png/0.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,one\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png"}\n')
    assert values(load_images(train_data_dir=where)) == [0, 1, 2, 3, 4]


def test_the_first_sub_folder_is_the_class_however_deep_an_image_lies(tmp_path):
    where = numbered(tmp_path, ["cat/0.png", "cat/test/1.png", "dog/x/y/2.png"])
    images = load_images(train_data_dir=where, class_conditional=True)
    assert images.class_names == ("cat", "dog")
    assert dict(zip(values(images), images.labels.tolist())) == {0: 0, 1: 0, 2: 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/0.png", "b/1.png", "beside.png"], r"takes each .* 1 of 3 images, such as beside\.png, lie in none"),
        (
            ["1.png", "2.png", "3.png"],
            "and the data has none: a folder has one sub-folder for each class",
        ),
    ],
)
def test_images_beside_the_classes_are_used_without_labels_and_refused_with_them(tmp_path, names, message):
    where = numbered(tmp_path, names)
    assert sorted(values(load_images(train_data_dir=where))) == [0, 1, 2]
    with pytest.raises(UserError, match=message):
        load_images(train_data_dir=where, class_conditional=True)


def test_what_begins_with_a_dot_is_passed_over(tmp_path):
    where = numbered(tmp_path / ".own", ["a/0.png", "b/1.PNG", "b/._1.png", ".thumbnails/3.png", "c/.x/4.png"])
    images = load_images(train_data_dir=where, class_conditional=True, image_mode="L")
    assert (values(images), images.class_names) == ([0, 1], ("a", "b"))


def test_links_are_followed(tmp_path):
    numbered(tmp_path / "store", ["deep/0.png", "1.png"])
    own = tmp_path / "own"
    (own / "b").mkdir(parents=True)
    (own / "a").symlink_to(tmp_path / "store" / "deep")
    (own / "b" / "1.png").symlink_to(tmp_path / "store" / "1.png")
    images = load_images(train_data_dir=str(own), class_conditional=True)
    assert (values(images), images.labels.tolist(), images.class_names) == ([0, 1], [0, 1], ("a", "b"))


ENDLESS, NO_FILE = (
    "is a link to a folder that it lies in.*: remove the link",
    "is a link to nothing, or no file of data",
)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"a/up": "."}, f"a/up {ENDLESS}"),
        ({"a/b": "b", "b/a": "a"}, ENDLESS),
        ({"x.png": "gone.png"}, rf"x\.png {NO_FILE}"),
        ({"x.png": "x.png"}, rf"x\.png {NO_FILE}"),
        ({"x.png": None}, rf"x\.png {NO_FILE}"),
    ],
    ids=["to a parent", "to each other", "to nothing", "to itself", "a pipe"],
)
def test_links_without_an_end_and_what_is_no_file_are_refused_by_name(tmp_path, links, message):
    where = numbered(tmp_path, ["a/0.png", "b/1.png"])
    for name, to in links.items():
        (tmp_path / name).symlink_to(tmp_path / to) if to else os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=message):
        load_images(train_data_dir=where)


def test_names_that_are_not_in_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff")).mkdir()
    except OSError:
        pytest.skip("the file system takes no such names")
    where = numbered(tmp_path, ["a/0.png"])
    solid("L", colour=1).save(tmp_path / "a" / os.fsdecode(b"\xfe.png"), "PNG")
    assert values(load_images(train_data_dir=where, class_conditional=False)) == [0, 1]
    (tmp_path / "a" / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\.png cannot be read") as refusal:
        load_images(train_data_dir=where)
    assert "\\xfe.png" in str(refusal.value).encode().decode()
    solid("L").save(tmp_path / os.fsdecode(b"\xff") / "2.png")
    with pytest.raises(UserError, match=r"the class b'\\xff' has a name that is not in UTF-8: rename its folder"):
        load_images(train_data_dir=where, class_conditional=True)


@pytest.mark.parametrize("content", [b"some text", b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    """PostScript is a program, which Pillow would have another program run."""
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png cannot be read \(its content is in no format"):
        load_images(train_data_dir=str(tmp_path))


def test_without_images_one_sentence_says_what_counts_as_one(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".png").write_text("nothing")
    with pytest.raises(UserError, match=r"^`train_data_dir` .* holds no images: files in it or its sub-folders"):
        load_images(train_data_dir=str(tmp_path))


def test_a_large_picture_beside_small_ones_is_refused(tmp_path, monkeypatch):
    where = numbered(tmp_path, ["0.png"])
    solid("L", size=(40, 40)).save(tmp_path / "x.png")
    for limit in (1599, 700):  # a warning of Pillow above the limit, an error above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match=r"x\.png cannot be read \(Image size \(1600 pixels\) exceeds limit"):
            load_images(train_data_dir=where, resolution=8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1600)
    assert len(load_images(train_data_dir=where, resolution=8)) == 2
