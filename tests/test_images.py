import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError

IMAGES = np.zeros((4, 8, 8), np.uint8)


def folder(tmp_path, pictures: dict[str, Image.Image]):
    for name, picture in pictures.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    return str(tmp_path)


def solid(mode="RGB", size=(8, 8), colour=None) -> Image.Image:
    return Image.new(mode, size, colour if colour is not None else (200 if mode == "L" else (200, 100, 50)))


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    return str(tmp_path / "d.npz")


def parquet(tmp_path, **columns) -> str:
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    return str(tmp_path / "d.parquet")


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


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
    where = parquet(
        tmp_path, image=[encoded(solid(), "WEBP", lossless=True)] * 3, label=pa.array([0, 2, 1], pa.uint8())
    )
    images = load_images(dataset_name=where, class_conditional=True)
    assert images.pixels[0, :, 0, 0].tolist() == [200, 100, 50]
    assert images.num_classes == 3


def test_a_picture_that_is_not_like_the_others_is_named(tmp_path):
    for odd in (solid("L"), solid(size=(16, 16))):
        where = folder(tmp_path, {"1.png": solid(), "2.png": odd})
        with pytest.raises(UserError, match=r"first is 8x8 of 3, and .*2\.png is .*; give `resolution`"):
            load_images(train_data_dir=where)
    assert load_images(train_data_dir=where, resolution=8, image_mode="RGB").shape == (3, 8, 8)
    where = folder(tmp_path, {"1.png": solid(), "2.png": solid(size=(8, 16))})
    with pytest.raises(UserError, match=r"2\.png cannot be read \(it is 8x16 and must be square: `center_crop` cuts"):
        load_images(train_data_dir=where)
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:45])
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        load_images(train_data_dir=where)


def test_enlarged_images_and_a_single_class_give_one_warning_each(tmp_path):
    pictures = {"a/1.png": solid(size=(32, 32)), "a/2.png": solid(size=(48, 24)), "a/3.png": solid(size=(64, 64))}
    where = folder(tmp_path, pictures)
    message = "2 of 3 images are smaller than `resolution` 64 and are enlarged; the smallest is 24x24"
    with pytest.warns(UserWarning, match=message) as caught:
        load_images(train_data_dir=where, resolution=64, center_crop=True)
    assert len(caught) == 1
    load_images(train_data_dir=where, resolution=24, center_crop=True)
    with pytest.warns(UserWarning, match="single class, so `class_conditional` has nothing to learn") as caught:
        load_images(train_data_dir=where, resolution=24, center_crop=True, class_conditional=True)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="4 of 4 images.* 16 and are enlarged; the smallest is 8x8"):
        load_images(dataset_name=npz(tmp_path, a=IMAGES), resolution=16)


COLOUR = "`background` must be the name of a colour, or #rrggbb, got "
ONE_OF_TWO, MEANS_NOTHING, UNPACK = (
    "one of the two",
    "` means nothing for {}, got x: leave it out.$",
    "unpack an archive",
)
MEANING = [  # settings that mean nothing for a source
    ({own: where, name: "x"}, f"^`{name}" + MEANS_NOTHING.format(what))
    for own, where, what, names in (
        (
            "train_data_dir",
            "pictures",
            "a folder of images",
            "dataset_config_name dataset_split image_column",
        ),
        ("train_data_dir", "pictures", "a folder of images without metadata.csv or metadata.jsonl", "label_column"),
        ("dataset_name", "d.npz", "a .npz file", "dataset_config_name dataset_split"),
        ("dataset_name", "d.parquet", "a .parquet file", "dataset_config_name dataset_split"),
        ("dataset_name", "saved", "a data set saved on disk", "dataset_config_name"),
    )
    for name in names.split()
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *MEANING,
        *[({"dataset_name": "d.npz", "background": colour}, COLOUR + colour) for colour in ("whiter", "#12345")],
        ({"dataset_name": "d.npz", "image_mode": "HSV"}, "`image_mode` must be one of"),
        ({}, ONE_OF_TWO),
        ({"dataset_name": "d.npz", "train_data_dir": "pictures"}, ONE_OF_TWO),
        ({"train_data_dir": ""}, ONE_OF_TWO),
        ({"dataset_name": "none.npz"}, r"there is no file none\.npz"),
        ({"dataset_name": "none.parquet"}, r"none\.parquet cannot be opened: .*none\.parquet"),
        *[({"dataset_name": name}, rf"must be .*{name}: {UNPACK} and .*numpy\.savez") for name in ("a.zip", "a.npy")],
        ({"train_data_dir": "none"}, r"must be a folder of images, got none\.$"),
        ({"train_data_dir": "a.zip"}, rf"must be a folder of images, got a\.zip: {UNPACK}, and give a"),
        ({"dataset_name": "pictures"}, "^a folder of images is given as `train_data_dir`, got `dataset_name` "),
    ],
)
def test_data_and_settings_that_mean_nothing_are_refused_with_what_to_do(tmp_path, monkeypatch, options, message):
    folder(tmp_path / "pictures", {"train/0.png": solid(), "test/1.png": solid()})
    npz(tmp_path, a=IMAGES)
    parquet(tmp_path, image=[encoded(solid())])
    datasets.Dataset.from_dict({"image": [1]}).save_to_disk(tmp_path / "saved")
    for name in ("a.zip", "a.npy"):
        (tmp_path / name).write_bytes(b"?")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_images(**options)


def test_a_local_copy_of_a_hub_data_set_has_configurations_and_splits(tmp_path):
    for number, name in enumerate(("en", "de")):
        pictures = {"image": [Image.new("L", (8, 8), number)]}
        data = datasets.Dataset.from_dict(pictures, features=datasets.Features({"image": datasets.Image()}))
        data.to_parquet(tmp_path / name / "test.parquet")
    entries = [f"- config_name: {n}\n  data_files:\n  - split: test\n    path: {n}/*.parquet" for n in ("en", "de")]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "\n".join(entries) + "\n---\n")
    images = load_images(dataset_name=str(tmp_path), dataset_config_name="de", dataset_split="test")
    assert images.pixels[0, 0, 0, 0] == 1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, 2], r"`image_column` must name a column of images, .*, got own \(int64\)"),
        ([{"a": 1}, {"a": 2}], r"own \(dict\)"),
        ([[1, 2], [3]], r"own \([Ll]ist\)"),
        ([{"bytes": 1}, {"bytes": 2}], r"own \(int64\)"),
        ([encoded(solid()), None], r"number 1 cannot be read \(it is empty\)"),
        ([b"", encoded(solid())], r"number 0 cannot be read \(it is empty\)"),
        ([b"no image", b""], r"number 0 cannot be read \(its content is in no format"),
        ([{"bytes": b"?", "path": "x.png"}, {"bytes": encoded(solid()), "path": None}], r"image x\.png cannot be read"),
        (["gone.png", "x.png"], r"gone\.png cannot be read \(.*No such file"),
    ],
)
def test_columns_and_rows_that_hold_no_images_are_refused(tmp_path, column, message):
    with pytest.raises(UserError, match=message):
        load_images(dataset_name=parquet(tmp_path, own=column), image_column="own")


@pytest.mark.parametrize(
    "labels", [[0, None, 1], [True, False, True], ["cat", "dog", "cat"], [0.0, 1.0, 2.0], [[0]] * 3]
)
def test_labels_that_are_no_integers_are_refused(tmp_path, labels):
    where = parquet(tmp_path, image=[encoded(solid())] * 3, label=labels)
    with pytest.raises(UserError, match=r"^labels must be one integer .*; give another `label_column`"):
        load_images(dataset_name=where, class_conditional=True)


def test_splits_of_saved_data_sets_are_taken_by_name_or_refused(tmp_path):
    own = datasets.Features({"image": datasets.Image()})
    parts = {
        name: datasets.Dataset.from_dict({"image": [solid("L", colour=value)]}, features=own)
        for value, name in enumerate(("train", "test"))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    assert load_images(dataset_name=str(tmp_path / "both"), dataset_split="test").pixels[0, 0, 0, 0] == 1
    with pytest.raises(UserError, match=r"`dataset_split` must be one of train, test for .*both, got x"):
        load_images(dataset_name=str(tmp_path / "both"), dataset_split="x")
    with pytest.raises(UserError, match=r"`dataset_split` must be one of train for .*one, got test"):
        load_images(dataset_name=str(tmp_path / "one"), dataset_split="test")


def test_columns_are_found_or_asked_for(tmp_path):
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "n": datasets.Value("int64")})
    picture = Image.fromarray(np.zeros((8, 8), np.uint8))
    data = datasets.Dataset.from_dict({"a": [picture], "b": [picture], "n": [3]}, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    name = str(tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"could be meant by `image_column`: a, b; name one"):
        load_images(dataset_name=name)
    assert len(load_images(dataset_name=name, image_column="b")) == 1
    with pytest.raises(
        UserError, match=r"`image_column` must name one of a \(Image\), b \(Image\), n \(int64\), got c"
    ):
        load_images(dataset_name=name, image_column="c")


def test_more_images_than_memory_holds_are_refused(tmp_path, monkeypatch):
    def full(*args):
        raise MemoryError

    where = npz(tmp_path, a=IMAGES)
    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(UserError, match=r"^4 images of \(1, 4, 4\) do not fit into memory: lower `resolution`\.$"):
        load_images(dataset_name=where, resolution=4)


def test_a_data_set_of_ones_own_is_read_and_no_format_of_it_hides_a_column(tmp_path):
    rows = {"image": [solid(), solid(colour=(1, 2, 3)), solid()], "label": [0, 1, 0]}
    own = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict(rows, features=own)
    images = load_images(dataset=data.select([1, 2]), class_conditional=True, image_mode="L", resolution=4)
    assert (images.shape, images.class_names, images.labels.tolist()) == ((1, 4, 4), ("a", "b"), [1, 0])
    with pytest.raises(UserError, match=r"`label_column` must name one of .*, got x"):
        load_images(dataset=data, class_conditional=True, label_column="x")
    with pytest.raises(UserError, match="one of the two"):
        load_images(dataset=data, train_data_dir=str(tmp_path))
    data.with_format("torch", columns=["image"]).save_to_disk(tmp_path / "saved")
    images = load_images(dataset_name=str(tmp_path / "saved"), class_conditional=True)
    assert images.labels.tolist() == [0, 1, 0]


def test_resolution_and_crop_agree_with_pillow(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    images = load_images(train_data_dir=folder(tmp_path, {"1.png": picture}), resolution=8, center_crop=True)
    expected = picture.crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), np.asarray(expected))
