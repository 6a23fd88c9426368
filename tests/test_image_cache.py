"""Decoded images in files."""

from pathlib import Path

import pytest
import torch
from conftest import write_npz

from diffusers_ict.data.images import load_images
from diffusers_ict.errors import UserError


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
