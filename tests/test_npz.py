"""Arrays in .npz files: values are taken by the range of their type, and nothing is taken that is not there."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_images import npz

from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError

IMAGES = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (">u2", [0, 128, 129, 257, 25700, 65535], [0, 0, 1, 1, 100, 255]),
        (np.uint16, [0, 128, 129, 257, 25700, 65535], [0, 0, 1, 1, 100, 255]),
        (np.float32, [0, 0.2, 0.498, 0.5019, 0.9979, 1], [0, 51, 127, 128, 254, 255]),
        (np.float64, [0, 1 / 255, 1.5001 / 255, 0.2, 0.5019, 1], [0, 1, 2, 51, 128, 255]),
        (np.float16, [0, 0.25, 0.5, 0.75, 0.875, 1], [0, 64, 128, 191, 223, 255]),
        (np.uint8, [0, 1, 2, 3, 254, 255], [0, 1, 2, 3, 254, 255]),
    ],
)
def test_values_are_converted_by_the_range_of_their_type(tmp_path, kind, values, expected):
    where = npz(tmp_path, a=np.broadcast_to(np.array(values, kind), (3, 6, 6)))
    for column in (None, "a"):
        assert load_images(dataset_name=where, image_column=column).pixels[2, 0, 5].tolist() == expected


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES[:0], "holds no images"),
        (IMAGES.astype(float), r"number 0 cannot be read \(its values are float64 from 0 to 63 and must be"),
        (IMAGES / np.float32(127.5) - 1, r"float32 from -1 to -0\.505882 and must be uint8, uint16 or floats from"),
        (np.where(IMAGES == 200, np.nan, 0.5), r"number 3 .*float64 from nan to nan and must"),
        (np.full((1, 8, 8), np.inf), "float64 from inf to inf and must"),
        (IMAGES.astype(np.int64), "int64 from 0 to 63 and must"),
        (IMAGES > 3, "bool from 0 to 1 and must"),
        (IMAGES * 1j, "complex128 and must"),
        (IMAGES.astype("U3"), "<U3 and must"),
        (np.zeros(4, np.uint8), r"`image_column` must name an array .*, got a \(uint8 \[4\]\)\.$"),
        (np.zeros((4, 8, 8, 3, 1), np.uint8), r"must name an array .*uint8 \[4, 8, 8, 3, 1\]"),
        (np.zeros((4, 0, 0), np.uint8), r"number 0 .* is an array \[0, 0\] and must be"),
        (IMAGES.astype(object), "pickle"),
    ],
)
def test_other_values_and_shapes_are_refused(tmp_path, array, message):
    with pytest.raises(UserError, match=message):
        load_images(dataset_name=npz(tmp_path, a=array), image_column="a")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(3), r"one integer for each of the 4 images, got \[3\]; give another `label_column`"),
        (np.int64(1), r"got \[\]"),
        (np.array([0, 1, -1, 2]), "within 0 and 99999, got -1 "),
        (np.array([0, 1, 2, 2**63], np.uint64), "within 0 and 99999, got 0 to 9223372036854775808"),
        (np.array([0, 1, 2, 123456]), "within 0 and 99999, .* number the classes from 0"),
    ],
)
def test_labels_that_are_no_class_for_each_image_are_refused(tmp_path, labels, message):
    where = npz(tmp_path, a=IMAGES, own=labels)
    with pytest.raises(UserError, match=message):
        load_images(dataset_name=where, image_column="a", label_column="own", class_conditional=True)
    assert len(load_images(dataset_name=where, image_column="a", label_column="own")) == 4


def test_arrays_that_are_not_asked_for_are_not_read(tmp_path):
    where = npz(tmp_path, images=IMAGES, ids=np.arange(4), labels=np.arange(4), notes=np.array([{}], object))
    assert load_images(dataset_name=where).labels is None
    with pytest.raises(UserError, match="could be meant by `label_column`: ids, labels"):
        load_images(dataset_name=where, class_conditional=True)


def test_channels_that_pillow_has_no_mode_for_are_used_as_they_are_or_refused(tmp_path):
    for channels in (2, 5):
        array = np.arange(4 * 8 * 8 * channels).astype(np.uint8).reshape(4, 8, 8, channels)
        where = npz(tmp_path, a=array)
        assert np.array_equal(load_images(dataset_name=where).pixels.permute(0, 2, 3, 1).numpy(), array)
        for change in ({"resolution": 4}, {"image_mode": "RGB"}):
            with pytest.raises(UserError, match=rf"has {channels} channels, and only 1, 3 or 4 can be resized"):
                load_images(dataset_name=where, **change)


def stored_npz(tmp_path, part: float) -> bytes:
    content = Path(npz(tmp_path, a=IMAGES)).read_bytes()
    return content[: int(part * len(content))]


def stored_npy(tmp_path, part: float) -> bytes:
    np.save(tmp_path / "d.npy", IMAGES)
    return (tmp_path / "d.npy").read_bytes()


def stored_header(tmp_path, shape: tuple[int, ...]) -> bytes:
    """An array that says it has a shape, and has 255 bytes."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(255))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (stored_npy, 1),
        *[(stored_npz, part) for part in (0.1, 0.5, 0.99)],
        *[(stored_header, shape) for shape in ((10**9, 1024, 1024), (-4, -8, 8), (-1, 8, 8), (10**30, 8, 8))],
    ],
)
def test_files_that_are_not_what_they_say_are_refused(tmp_path, content, how):
    (tmp_path / "d.npz").write_bytes(content(tmp_path, how))
    with pytest.raises(UserError, match=r"d\.npz cannot be read as \.npz \(.*\); write it again with `numpy"):
        load_images(dataset_name=str(tmp_path / "d.npz"))
