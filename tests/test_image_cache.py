"""Decoded images in files: the second run maps what the first one decoded, and never anything else."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_npz
from PIL import Image
from test_images import folder

from diffusers_ict.data import cache, images
from diffusers_ict.data.folder import read_folder
from diffusers_ict.data.images import load_images, read_images
from diffusers_ict.data.source import Source
from diffusers_ict.errors import UserError


def pictures(tmp_path: Path, count: int = 3) -> str:
    rng = np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
    return folder(tmp_path / "pictures", {f"{name}/{i}.png": p for name, (i, p) in zip("abab", enumerate(made))})


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture
def decoding(monkeypatch):
    """How often pictures were decoded."""
    calls = []

    def counted(*args):
        calls.append(args)
        return decode(*args)

    decode = images.decode
    monkeypatch.setattr(images, "decode", counted)
    return calls


def test_images_in_a_file_are_those_in_memory(tmp_path):
    path = write_npz(tmp_path / "data.npz", channels=3)
    in_memory = load_images(dataset_name=str(path), class_conditional=True)
    indices = torch.tensor([5, 0, 63])
    flips = torch.tensor([True, False, True])
    expected = in_memory.batch(indices, flips, "cpu")
    for _ in range(2):
        in_file = load_images(dataset_name=str(path), class_conditional=True, image_cache_dir=str(tmp_path / "cache"))
        assert torch.equal(in_memory.pixels, in_file.pixels)
        assert all(torch.equal(a, b) for a, b in zip(expected, in_file.batch(indices, flips, "cpu")))
        (kept,) = (tmp_path / "cache").glob("*.bin")
        assert len(list((tmp_path / "cache").iterdir())) == 2, "more is there than the pixels and the facts"
        mapped = Path("/proc/self/maps")
        if mapped.exists():
            assert str(kept) in mapped.read_text(), "it is not in a file"


def test_the_second_run_decodes_nothing(tmp_path, monkeypatch):
    own = {"train_data_dir": pictures(tmp_path), "resolution": 8, "image_cache_dir": str(tmp_path / "cache")}
    first = load_images(**own)
    before = files_of(tmp_path / "cache")

    def broken(*args, **kwargs):
        raise AssertionError("a picture is opened")

    monkeypatch.setattr(Image, "open", broken)
    second = load_images(**own, class_conditional=True)
    assert torch.equal(first.pixels, second.pixels)
    assert second.class_names == ("a", "b")
    assert files_of(tmp_path / "cache") == before
    with pytest.raises(AssertionError, match="a picture is opened"):
        load_images(**{**own, "resolution": 4})


def test_a_kept_file_warns_as_the_pictures_did(tmp_path, decoding):
    own = {"train_data_dir": pictures(tmp_path), "resolution": 32, "image_cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        with pytest.warns(UserWarning, match="3 of 3 images are smaller than `resolution` 32.*the smallest is 16x16"):
            load_images(**own)
    assert len(decoding) == 1


@pytest.mark.parametrize(
    "change", [{"resolution": 4}, {"center_crop": True}, {"image_mode": "L"}, {"background": "black"}]
)
def test_every_setting_that_determines_the_pixels_has_a_file_of_its_own(tmp_path, decoding, change):
    own = {"train_data_dir": pictures(tmp_path), "image_cache_dir": str(tmp_path / "cache")}
    load_images(**own)
    load_images(**own, **change)
    assert len(decoding) == 2


def test_a_changed_file_is_decoded_again_and_another_file_in_the_folder_is_not(tmp_path, decoding):
    where = pictures(tmp_path)
    own = {"train_data_dir": where, "image_cache_dir": str(Path(where) / "cache")}
    load_images(**own)
    load_images(**own)
    assert len(decoding) == 1, "the cache in the folder counts as a part of the data"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(Path(where) / "a" / "0.png")
    assert load_images(**own).pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    assert len(decoding) == 2
    os.utime(Path(where) / "b" / "1.png", (1, 1))
    load_images(**own)
    assert len(decoding) == 3
    Image.new("RGB", (16, 16)).save(Path(where) / "a" / "new.png")
    assert len(load_images(**own)) == 4


def test_files_and_saved_data_sets_are_known_by_their_size_and_time(tmp_path, decoding):
    import datasets

    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    rows = {"a": [Image.new("L", (8, 8), 1)], "b": [Image.new("L", (8, 8), 2)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    data.save_to_disk(tmp_path / "saved")
    np.savez(tmp_path / "d.npz", a=np.full((1, 8, 8), 1, np.uint8), b=np.full((1, 8, 8), 2, np.uint8))
    inside = {"d.parquet": "d.parquet", "saved": "saved/data-00000-of-00001.arrow", "d.npz": "d.npz"}
    for number, (name, changed) in enumerate(inside.items()):
        own = {"dataset_name": str(tmp_path / name), "image_cache_dir": str(tmp_path / "cache")}
        for column, pixel in (("a", 1), ("b", 2), ("a", 1), ("b", 2)):
            assert load_images(**own, image_column=column).pixels[0, 0, 0, 0] == pixel
        assert len(decoding) == 3 * number + 2
        os.utime(tmp_path / changed, (1, 1))
        load_images(**own, image_column="a")
        assert len(decoding) == 3 * number + 3


def test_hub_data_is_known_by_its_fingerprint(tmp_path, decoding, monkeypatch):
    import datasets

    def load_dataset(name, config, split, streaming):
        pixel = {"train": 1, "test": 2}[split] + (10 if config else 0)
        features = datasets.Features({"image": datasets.Image()})
        data = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8), pixel)]}, features=features)
        data._fingerprint = revision[0]
        return data

    revision = ["first"]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    own = {"dataset_name": "user/name", "image_cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        assert load_images(**own).pixels[0, 0, 0, 0] == 1
        assert load_images(**own, dataset_split="test").pixels[0, 0, 0, 0] == 2
        assert load_images(**own, dataset_config_name="c").pixels[0, 0, 0, 0] == 11
    assert len(decoding) == 3
    revision[0] = "second"
    load_images(**own)
    assert len(decoding) == 4


@pytest.mark.parametrize("damage", ["cut", "bit", "facts", "shape"])
def test_a_damaged_file_is_passed_over_and_made_again(tmp_path, decoding, damage):
    own = {"train_data_dir": pictures(tmp_path), "image_cache_dir": str(tmp_path / "cache")}
    expected = load_images(**own).pixels.clone()
    (pixels,) = (tmp_path / "cache").glob("*.bin")
    (facts,) = (tmp_path / "cache").glob("*.json")
    content = pixels.read_bytes()
    if damage == "cut":
        pixels.write_bytes(content[:-1])
    elif damage == "bit":
        pixels.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "facts":
        facts.write_text("[]")
    else:
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "shape": [3, 3, 8, 32, 2]}))
    with pytest.warns(UserWarning, match=f"file {pixels.name} in `image_cache_dir` is not as it was written"):
        assert torch.equal(load_images(**own).pixels, expected)
    assert torch.equal(load_images(**own).pixels, expected)
    assert len(decoding) == 2
    assert pixels.read_bytes() == content


def test_pixels_without_their_facts_are_made_again(tmp_path, decoding):
    own = {"train_data_dir": pictures(tmp_path), "image_cache_dir": str(tmp_path / "cache")}
    load_images(**own)
    next((tmp_path / "cache").glob("*.json")).unlink()
    load_images(**own)
    assert len(decoding) == 2


def test_runs_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    """All of them decode before the first one is ready, and all see the same pixels."""
    where, target = pictures(tmp_path, 4), tmp_path / "cache"
    expected = load_images(train_data_dir=where).pixels
    waiting = threading.Barrier(4)
    finish = cache._finish

    def together(*args):
        waiting.wait(timeout=60)
        return finish(*args)

    monkeypatch.setattr(cache, "_finish", together)
    sources = [read_folder(Path(where), False) for _ in range(4)]
    with ThreadPoolExecutor(4) as runs:
        loaded = list(runs.map(lambda source: read_images(source, image_cache_dir=str(target)), sources))
    assert all(torch.equal(one.pixels, expected) for one in loaded)
    assert sorted(path.suffix for path in target.iterdir()) == [".bin", ".json"]


def test_an_interrupted_run_leaves_nothing_that_is_taken_for_pixels(tmp_path, decoding):
    where = pictures(tmp_path)
    (Path(where) / "b" / "1.png").write_bytes(b"no picture")
    own = {"train_data_dir": where, "image_cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        load_images(**own)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_without_an_identity_is_never_kept(tmp_path):
    for pixel in (1, 2):
        source = Source([np.full((8, 8), pixel, np.uint8)], 1)
        made = read_images(source, image_cache_dir=str(tmp_path / "cache"))
        assert made.pixels[0, 0, 0, 0] == pixel
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
    assert list((tmp_path / "cache").iterdir()) == [], "something is left"
