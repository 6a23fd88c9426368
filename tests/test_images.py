import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_npz
from PIL import Image

from diffusers_ict.data.images import load_images
from diffusers_ict.errors import UserError


def folder(tmp_path, pictures: dict[str, Image.Image]):
    for name, picture in pictures.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    return str(tmp_path)


def solid(mode="RGB", size=(8, 8), colour=None) -> Image.Image:
    return Image.new(mode, size, colour if colour is not None else (200 if mode == "L" else (200, 100, 50)))


def test_a_folder_of_images_with_classes(tmp_path):
    pictures = {"cat/1.png": solid(), "cat/2.png": solid(), "dog/1.png": solid(colour=(1, 2, 3))}
    images = load_images(train_data_dir=folder(tmp_path, pictures), class_conditional=True)
    assert images.pixels.shape == (3, 3, 8, 8)
    assert images.pixels.dtype == torch.uint8
    assert images.num_classes == 2
    assert images.class_names == ("cat", "dog")
    dog = images.pixels[images.labels == 1]
    assert dog[0, :, 0, 0].tolist() == [1, 2, 3]


def test_without_class_conditional_labels_are_left_out(tmp_path):
    images = load_images(train_data_dir=folder(tmp_path, {"a/1.png": solid(), "b/2.png": solid()}))
    assert images.labels is None
    assert images.num_classes is None


def test_resolution_and_crop_agree_with_pillow(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    images = load_images(train_data_dir=folder(tmp_path, {"1.png": picture}), resolution=8, center_crop=True)
    expected = picture.crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_grey_images_have_one_channel_and_palettes_are_decoded(tmp_path):
    assert load_images(train_data_dir=folder(tmp_path / "a", {"1.png": solid("L")})).shape == (1, 8, 8)
    palette = solid().convert("P")
    assert load_images(train_data_dir=folder(tmp_path / "b", {"1.png": palette})).shape == (3, 8, 8)


def test_image_mode_converts(tmp_path):
    where = folder(tmp_path, {"1.png": solid("L"), "2.png": solid("RGB")})
    assert load_images(train_data_dir=where, image_mode="RGB").shape == (3, 8, 8)


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw"])
def test_npz_in_every_layout(tmp_path, layout):
    array = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    stored = {"nhw": array[..., 0], "nhwc": array, "nchw": array.transpose(0, 3, 1, 2)}[layout]
    np.savez(tmp_path / "d.npz", images=stored, labels=np.arange(5))
    images = load_images(dataset_name=str(tmp_path / "d.npz"), class_conditional=True)
    expected = array[..., :1] if layout == "nhw" else array
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), expected)
    assert images.labels.tolist() == [0, 1, 2, 3, 4]


def test_parquet_arrow_and_saved_data_sets_hold_the_same(tmp_path):
    import datasets

    pictures = [Image.fromarray(np.full((8, 8), 10 * i, np.uint8)) for i in range(4)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"img": pictures, "label": [0, 1, 0, 1]}, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    data.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for name in (tmp_path / "d.parquet", tmp_path / "saved", arrow):
        images = load_images(dataset_name=str(name), class_conditional=True)
        assert images.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
        assert images.labels.tolist() == [0, 1, 0, 1]
        assert images.class_names == ("a", "b")


def test_parquet_of_plain_bytes_written_by_other_programs(tmp_path):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    solid().save(buffer, "WEBP", lossless=True)
    pq.write_table(
        pa.table({"image": [buffer.getvalue()] * 3, "label": pa.array([0, 2, 1], pa.uint8())}), tmp_path / "d.parquet"
    )
    images = load_images(dataset_name=str(tmp_path / "d.parquet"), class_conditional=True)
    assert images.pixels[0, :, 0, 0].tolist() == [200, 100, 50]
    assert images.num_classes == 3


def broken(tmp_path):
    where = folder(tmp_path, {"good.png": solid(), "zbroken.png": solid(size=(64, 64))})
    file = tmp_path / "zbroken.png"
    file.write_bytes(file.read_bytes()[:60])
    return where


def test_a_truncated_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"zbroken\.png cannot be read"):
        load_images(train_data_dir=broken(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError):
        load_images(train_data_dir=str(tmp_path))


def test_mixed_channels_are_refused_and_the_odd_one_named(tmp_path):
    where = folder(tmp_path, {"1.png": solid("L"), "2.png": solid("RGB")})
    with pytest.raises(UserError, match=r"same number of channels: the first has 1 and .*2\.png has 3.*`image_mode`"):
        load_images(train_data_dir=where)


def test_mixed_sizes_and_oblong_images_say_what_to_do(tmp_path):
    mixed = folder(tmp_path / "a", {"1.png": solid(), "2.png": solid(size=(16, 16))})
    with pytest.raises(UserError, match=r"same size.*`resolution`"):
        load_images(train_data_dir=mixed)
    oblong = folder(tmp_path / "b", {"1.png": solid(size=(8, 16))})
    with pytest.raises(UserError, match=r"1\.png is 8x16: add `center_crop`"):
        load_images(train_data_dir=oblong)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    return str(tmp_path / "d.npz")


IMAGES = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"images": IMAGES}, {"class_conditional": True}, "needs labels and the data has none"),
        ({"images": IMAGES, "labels": np.array([0, 1, -1, 2])}, {"class_conditional": True}, "within 0 and 2, got -1"),
        ({"images": IMAGES.astype(float)}, {}, "holds no images"),
        ({"images": IMAGES[:0]}, {}, "holds no images"),
        ({"a": IMAGES, "b": IMAGES}, {}, "several arrays that could be meant by `image_column`: a, b"),
        ({"a": IMAGES}, {"image_column": "c"}, "no array 'c'"),
        ({"a": IMAGES}, {"image_mode": "HSV"}, "`image_mode` must be one of"),
    ],
)
def test_bad_npz_files_get_one_sentence(tmp_path, arrays, options, message):
    with pytest.raises(UserError, match=message):
        load_images(dataset_name=npz(tmp_path, **arrays), **options)


def test_missing_data_is_said(tmp_path):
    for options in ({}, {"dataset_name": "a.npz", "train_data_dir": "b"}):
        with pytest.raises(UserError, match="one of the two"):
            load_images(**options)
    for name in ("none.npz", "none.parquet"):
        with pytest.raises(UserError, match="there is no file"):
            load_images(dataset_name=str(tmp_path / name))
    with pytest.raises(UserError, match="must be a folder"):
        load_images(train_data_dir=str(tmp_path / "none"))


def test_columns_are_found_or_asked_for(tmp_path):
    import datasets

    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "n": datasets.Value("int64")})
    picture = Image.fromarray(np.zeros((8, 8), np.uint8))
    data = datasets.Dataset.from_dict({"a": [picture], "b": [picture], "n": [3]}, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    name = str(tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"has 2 \(a, b, n\); name it with `image_column`"):
        load_images(dataset_name=name)
    assert len(load_images(dataset_name=name, image_column="b")) == 1
    with pytest.raises(UserError, match="no column 'c'"):
        load_images(dataset_name=name, image_column="c")


def test_images_in_a_file_are_those_in_memory_and_the_file_is_not_left(tmp_path):
    path = write_npz(tmp_path / "data.npz", channels=3)
    in_memory = load_images(dataset_name=str(path), class_conditional=True)
    in_file = load_images(dataset_name=str(path), class_conditional=True, image_cache_dir=str(tmp_path / "cache"))
    assert torch.equal(in_memory.pixels, in_file.pixels)
    indices = torch.tensor([5, 0, 63])
    flips = torch.tensor([True, False, True])
    assert all(
        torch.equal(a, b) for a, b in zip(in_memory.batch(indices, flips, "cpu"), in_file.batch(indices, flips, "cpu"))
    )
    assert list((tmp_path / "cache").iterdir()) == []
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(tmp_path / "cache") in mapped.read_text(), "it is not in a file"


def test_a_folder_without_room_for_the_images_is_refused(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "data.npz")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"`image_cache_dir` .*taken cannot hold the images"):
        load_images(dataset_name=str(path), image_cache_dir=str(tmp_path / "taken"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="cannot hold the images: No space left on device"):
        load_images(dataset_name=str(path), image_cache_dir=str(tmp_path / "cache"))


def test_no_more_memory_is_taken_than_the_images_need(tmp_path):
    """Peak of what numpy allocates while decoding: one copy of the data, not two or three."""
    (tmp_path / "images").mkdir()
    for number in range(40):
        Image.new("RGB", (128, 128), (number, 0, 0)).save(tmp_path / "images" / f"{number:02}.bmp")
    load_images(train_data_dir=str(tmp_path / "images"))  # what libraries keep, they have now
    tracemalloc.start()
    images = load_images(train_data_dir=str(tmp_path / "images"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * images.pixels.nbytes
