"""What was read is told in a few words."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from test_images import folder, npz, solid

from diffusers_ict.data.images import Images, load_images
from diffusers_ict.data.originals import Originals
from diffusers_ict.data.overview import overview


def mixed(tmp_path: Path) -> str:
    pictures = {
        "cat/1.png": solid("L", (20, 48)),
        "cat/2.png": solid("RGB", (32, 16)),
        "cat/3.png": solid("RGB", (16, 16)),
        "dog/4.png": solid("RGB", (30, 24)).convert("P"),
    }
    return folder(tmp_path, pictures)


def test_sizes_modes_and_classes_are_those_of_the_pictures(tmp_path):
    own = {"resolution": 8, "center_crop": True, "image_mode": "RGB", "class_conditional": True}
    images = load_images(train_data_dir=mixed(tmp_path), **own)
    assert images.originals == Originals((16, 16), (30, 24), {"RGB": 2, "L": 1, "P": 1}, 0)
    assert overview(images) == {
        "images": "4 of 3x8x8, 2 classes: 3 cat, 1 dog",
        "originals": "16x16 to 30x24, 2 RGB, 1 L, 1 P",
    }


def test_sizes_are_those_of_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16)).save(tmp_path / "1.png", exif=exif)
    images = load_images(train_data_dir=str(tmp_path), center_crop=True)
    assert overview(images) == {"images": "1 of 3x16x16, no classes", "originals": "16x32, 1 RGB"}


def test_arrays_have_a_type_instead_of_a_mode(tmp_path):
    images = load_images(dataset_name=npz(tmp_path, a=np.zeros((5, 8, 8), np.float32)))
    assert overview(images)["originals"] == "8x8, 5 float32"


def test_kept_images_know_what_they_were(tmp_path):
    own = {"train_data_dir": mixed(tmp_path / "own"), "resolution": 8, "center_crop": True, "image_mode": "RGB"}
    expected = load_images(**own).originals
    for _ in range(2):  # made, then found
        assert load_images(**own, image_cache_dir=str(tmp_path / "cache")).originals == expected
    (facts,) = (tmp_path / "cache").glob("*.json")
    assert json.loads(facts.read_text())["originals"]["modes"] == {"RGB": 2, "L": 1, "P": 1}


def test_images_of_ones_own_need_no_originals():
    pixels = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    assert overview(Images(pixels)) == {"images": "6 of 1x8x8, no classes"}
    labels = torch.tensor([0, 2, 2, 2, 0, 2])
    assert overview(Images(pixels, labels, 4)) == {
        "images": "6 of 1x8x8, 4 classes: 2 class 0, 0 class 1, 4 class 2, 0 class 3"
    }


def test_many_classes_are_told_by_the_least_and_the_most(tmp_path):
    images = Images(torch.zeros(1500, 1, 1, 1, dtype=torch.uint8), torch.arange(1500) % 1000, 1000)
    assert overview(images)["images"] == "1500 of 1x1x1, 1000 classes: 1 to 2 images each"
