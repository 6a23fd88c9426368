"""Images as a data set: batches from blocks, the fingerprint, and the summary of what was read."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from test_images import folder, npz, solid
from torch.utils.data import DataLoader

from diffusers_ict.data import dataset
from diffusers_ict.data.dataset import Images
from diffusers_ict.data.load import load_images
from diffusers_ict.data.transform import to_unit

ARRAYS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])


def pixels() -> torch.Tensor:
    return torch.from_numpy(ARRAYS).permute(0, 3, 1, 2)


@pytest.mark.parametrize("sizes", [[6], [1, 2, 3], [4, 2]])
def test_batches_are_those_of_one_tensor_in_the_order_of_the_indices(sizes):
    images = Images(pixels().split(sizes), LABELS, 2)
    for indices in ([5, 0, 3, 3, 1], [2], [0, 1, 2, 3, 4, 5]):
        batch = images.__getitems__(indices)
        for x, labels in ((batch["x"], batch["label"]), images.part(torch.tensor(indices))):
            assert torch.equal(x, pixels()[indices])
            assert torch.equal(labels, LABELS[indices])
    assert torch.equal(images.part(slice(1, 5, 2))[0], pixels()[1:5:2])
    assert torch.equal(images[4]["x"], pixels()[4])
    assert images[3]["label"] == 1
    assert (len(images), images.shape, images.nbytes) == (6, (3, 8, 8), ARRAYS.nbytes)
    loaded = DataLoader(images, 4, collate_fn=lambda batch: batch)
    assert torch.equal(torch.cat([batch["x"] for batch in loaded]), pixels())


def test_floats_of_any_shape_are_used_as_they_are():
    x = torch.randn(7, 5, 16, 24)
    images = Images(x.split([3, 4]))
    assert images.shape == (5, 16, 24)
    flips = torch.tensor([True, False])
    batch, labels = images.batch(torch.tensor([6, 1]), flips, "cpu")
    assert labels is None
    assert torch.equal(batch, torch.stack([x[6].flip(-1), x[1]]))
    assert len(images.fingerprint()) == 32


def test_bytes_become_numbers_from_minus_one_to_one():
    x = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3), torch.tensor([True]), "cpu")
    torch.testing.assert_close(x.flatten(), torch.tensor([1.0, -0.6, -1.0]))


# ---------------------------------------------------------------- fingerprint


def test_folder_file_and_array_of_the_same_pixels_agree(tmp_path, monkeypatch):
    where = folder(tmp_path / "own", {f"{i}.png": Image.fromarray(array) for i, array in enumerate(ARRAYS)})
    np.savez(tmp_path / "d.npz", a=ARRAYS)
    expected = load_images(train_data_dir=where).fingerprint()
    monkeypatch.chdir(tmp_path)
    for own in ({"train_data_dir": "./own"}, {"train_data_dir": "own/../own/"}, {"dataset_name": "d.npz"}):
        assert load_images(**own).fingerprint() == expected
    assert Images(pixels()).fingerprint() == expected, "the order of memory counts"
    assert Images(pixels().split([1, 5])).fingerprint() == expected, "the blocks count"
    monkeypatch.setattr(dataset, "AT_ONCE", 2)
    assert Images(pixels()).fingerprint() == expected


def test_the_fingerprint_is_the_hash_that_is_documented_and_every_change_of_the_images_has_another():
    """Checkpoints of earlier versions hold it, too."""
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (pixels().numpy(), LABELS.numpy())]
    facts = json.dumps([[6, 3, 8, 8], *digests, ["a", "b"]])
    expected = hashlib.sha256(facts.encode()).hexdigest()[:32]
    assert Images(pixels(), LABELS, 2, ("a", "b")).fingerprint() == expected
    other = pixels().clone()
    other[5, 2, 7, 7] ^= 1
    changed = [
        Images(other, LABELS, 2, ("a", "b")),
        Images(pixels().flip(0), LABELS, 2, ("a", "b")),
        Images(pixels().reshape(6, 3, 16, 4), LABELS, 2, ("a", "b")),
        Images(pixels()[:5], LABELS[:5], 2, ("a", "b")),
        Images(pixels(), LABELS.flip(0), 2, ("a", "b")),
        Images(pixels(), None, 2, ("a", "b")),
        Images(pixels(), LABELS, 2, ("a", "c")),
        Images(pixels(), LABELS, 2),
    ]
    assert len({expected, *(images.fingerprint() for images in changed)}) == len(changed) + 1


# ---------------------------------------------------------------- summary


def test_sizes_modes_and_classes_are_those_of_the_pictures(tmp_path):
    pictures = {
        "cat/1.png": solid("L", (20, 48)),
        "cat/2.png": solid("RGB", (32, 16)),
        "cat/3.png": solid("RGB", (16, 16)),
        "dog/4.png": solid("RGB", (30, 24)).convert("P"),
    }
    own = {"resolution": 8, "center_crop": True, "image_mode": "RGB", "class_conditional": True}
    images = load_images(train_data_dir=folder(tmp_path, pictures), **own)
    assert images.originals == Counter({(20, 48, "L"): 1, (32, 16, "RGB"): 1, (16, 16, "RGB"): 1, (30, 24, "P"): 1})
    originals = "16x16 to 30x24, 2 RGB, 1 L, 1 P"
    assert images.overview() == {"images": "4 of 3x8x8, 2 classes: 3 cat, 1 dog", "originals": originals}


def test_sizes_are_those_of_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16)).save(tmp_path / "1.png", exif=exif)
    images = load_images(train_data_dir=str(tmp_path), center_crop=True)
    assert images.overview() == {"images": "1 of 3x16x16, no classes", "originals": "16x32, 1 RGB"}


def test_arrays_have_a_type_instead_of_a_mode_and_many_classes_are_told_by_the_least_and_the_most(tmp_path):
    images = load_images(dataset_name=npz(tmp_path, a=np.zeros((5, 8, 8), np.float32)))
    assert images.overview()["originals"] == "8x8, 5 float32"
    few = Images(torch.zeros(6, 1, 8, 8), torch.tensor([0, 2, 2, 2, 0, 2]), 4)
    assert few.overview() == {
        "images": "6 of 1x8x8, 4 classes, 2 without images: 2 class 0, 0 class 1, 4 class 2, 0 class 3"
    }
    many = Images(torch.zeros(1500, 1, 1, 1), torch.arange(1500) % 1000, 1000)
    assert many.overview()["images"] == "1500 of 1x1x1, 1000 classes: 1 to 2 images each"
