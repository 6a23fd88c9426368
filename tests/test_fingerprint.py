"""The fingerprint of a data set: the same for the same images wherever they lie, and another for any other."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from test_images import folder

from diffusers_ict.data import cache, images
from diffusers_ict.data.images import Images, load_images

ARRAYS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def pixels() -> torch.Tensor:
    return torch.from_numpy(ARRAYS).permute(0, 3, 1, 2)


def test_folder_file_and_array_of_the_same_pixels_agree(tmp_path, monkeypatch):
    where = folder(tmp_path / "own", {f"{i}.png": Image.fromarray(array) for i, array in enumerate(ARRAYS)})
    np.savez(tmp_path / "d.npz", a=ARRAYS)
    expected = load_images(train_data_dir=where).fingerprint()
    assert len(expected) == 32
    assert int(expected, 16) >= 0
    monkeypatch.chdir(tmp_path)
    for own in ({"train_data_dir": "./own"}, {"train_data_dir": "own/../own/"}, {"dataset_name": "d.npz"}):
        assert load_images(**own).fingerprint() == expected
    assert Images(pixels()).fingerprint() == expected, "the order of memory counts"


def test_it_is_the_hash_that_is_documented():
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (pixels().numpy(), labels.numpy())]
    facts = json.dumps([[6, 3, 8, 8], *digests, ["a", "b"]])
    expected = hashlib.sha256(facts.encode()).hexdigest()[:32]
    assert Images(pixels(), labels, 2, ("a", "b")).fingerprint() == expected


def test_every_change_of_the_images_is_seen():
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    whole = Images(pixels(), labels, 2, ("a", "b"))
    known = {whole.fingerprint()}
    other = pixels().clone()
    other[5, 2, 7, 7] ^= 1
    changes = [
        {"pixels": other},
        {"pixels": pixels().flip(0)},
        {"pixels": pixels().reshape(6, 3, 16, 4)},
        {"pixels": pixels()[:5], "labels": labels[:5]},
        {"labels": labels.flip(0)},
        {"labels": None},
        {"class_names": ("a", "c")},
        {"class_names": None},
    ]
    for number, change in enumerate(changes, 2):
        known.add(dataclasses.replace(whole, **change).fingerprint())
        assert len(known) == number, change


def test_blocks_do_not_change_it(monkeypatch):
    whole = Images(pixels()).fingerprint()
    monkeypatch.setattr(images, "BLOCK", 400)  # two images
    assert Images(pixels()).fingerprint() == whole


def test_pixels_are_hashed_once_and_not_again_after_their_file_was_checked(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", a=ARRAYS)
    own = {"dataset_name": str(tmp_path / "d.npz")}
    expected = load_images(**own).fingerprint()
    hashed = []
    sha256 = images._sha256
    monkeypatch.setattr(images, "_sha256", lambda tensor: hashed.append(1) or sha256(tensor))
    in_memory = load_images(**own)
    assert [in_memory.fingerprint(), in_memory.fingerprint(), in_memory.to("cpu").fingerprint()] == [expected] * 3
    assert len(hashed) == 1
    for _ in range(2):  # made, then found
        assert load_images(**own, image_cache_dir=str(tmp_path / "cache")).fingerprint() == expected
    assert len(hashed) == 1
    (kept,) = Path(tmp_path / "cache").glob("*.bin")
    with kept.open("rb") as file:
        assert cache._digest(file) == in_memory.pixels_sha256
