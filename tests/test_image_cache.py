"""Decoded images in the Arrow cache of `datasets`: made in several processes, read again, and never anything else."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from short_run import several_processes
from test_images import encoded, folder

from diffusers_ict.data import load, transform
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError


def pictures(tmp_path: Path, count: int = 3) -> str:
    rng = np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
    return folder(tmp_path / "pictures", {f"{name}/{i}.png": p for name, (i, p) in zip("abab", enumerate(made))})


@pytest.fixture
def opened(monkeypatch):
    """How many pictures were opened in this process."""
    calls = []

    def counted(stored):
        calls.append(stored)
        return open_picture(stored)

    open_picture = transform.open_picture
    monkeypatch.setattr(transform, "open_picture", counted)
    return calls


@pytest.mark.parametrize("cache", [None, "cache"])
def test_the_second_run_reads_what_the_first_one_decoded_and_maps_nothing(tmp_path, opened, cache):
    own = {"train_data_dir": pictures(tmp_path), "resolution": 32}
    own |= {"image_cache_dir": str(tmp_path / cache)} if cache else {}
    warned = "3 of 3 images are smaller than `resolution` 32.*the smallest is 16x16"
    with pytest.warns(UserWarning, match=warned):
        first = load_images(**own)
    assert len(opened) == 4, "the first one shows the shape of all"
    with pytest.warns(UserWarning, match=warned):
        second = load_images(**own, class_conditional=True)
    assert len(opened) == 5
    assert torch.equal(first.pixels, second.pixels)
    assert first.originals == second.originals
    assert second.class_names == ("a", "b")
    if Path("/proc/self/maps").exists():
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "images-" in line]
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
        assert not any(low <= second.pixels.data_ptr() < high for low, high in ranges), "the pixels lie in a file"


def test_every_setting_that_determines_the_pixels_has_a_file_of_its_own(tmp_path):
    own = {"train_data_dir": pictures(tmp_path), "image_cache_dir": str(tmp_path / "cache")}
    changes = [{}, {"resolution": 4}, {"center_crop": True}, {"image_mode": "L"}, {"background": "black"}]
    for number, change in enumerate(changes, 1):
        load_images(**own, **change)
        assert len(list((tmp_path / "cache").iterdir())) == number, change


def test_a_changed_file_is_decoded_again_and_another_file_in_the_folder_is_not(tmp_path, opened):
    where = pictures(tmp_path)
    own = {"train_data_dir": where, "image_cache_dir": str(tmp_path / "cache")}
    load_images(**own)
    load_images(**own)
    assert len(opened) == 5
    Image.new("RGB", (16, 16), (1, 2, 3)).save(Path(where) / "a" / "0.png")
    assert load_images(**own).pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    os.utime(Path(where) / "b" / "1.png", (1, 1))
    load_images(**own)
    assert len(opened) == 13
    Image.new("RGB", (16, 16)).save(Path(where) / "a" / "new.png")
    assert len(load_images(**own)) == 4


def test_a_folder_is_known_by_its_images_and_not_by_the_spelling_of_its_path(tmp_path, monkeypatch):
    pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    for where in ("pictures", "./pictures/", str(tmp_path / "pictures"), "link"):
        load_images(train_data_dir=where, image_cache_dir="cache")
        assert len(list((tmp_path / "cache").iterdir())) == 1, where


def test_data_files_and_the_files_that_they_name_are_known_by_their_time(tmp_path):
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    rows = {"a": [Image.new("L", (8, 8), 1)], "b": [Image.new("L", (8, 8), 2)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    for column, (picture,) in rows.items():
        picture.save(tmp_path / f"{column}.png")
    named = {column: [str(tmp_path / f"{column}.png")] for column in rows}
    datasets.Dataset.from_dict(named, features=features).to_parquet(tmp_path / "named.parquet")
    for name, changed in (("d.parquet", "d.parquet"), ("named.parquet", "a.png")):
        cache = tmp_path / f"cache of {name}"
        own = {"dataset_name": str(tmp_path / name), "image_cache_dir": str(cache)}
        for column, pixel in (("a", 1), ("b", 2), ("a", 1), ("b", 2)):
            assert load_images(**own, image_column=column).pixels[0, 0, 0, 0] == pixel
        assert len(list(cache.iterdir())) == 2
        os.utime(tmp_path / changed, (1, 1))
        load_images(**own, image_column="a")
        assert len(list(cache.iterdir())) == 3


def test_hub_data_and_data_sets_of_ones_own_are_known_by_their_fingerprint(tmp_path, monkeypatch):
    def load_dataset(name, config, split, streaming):
        pixel = {"train": 1, "test": 2}[split] + (10 if config else 0)
        features = datasets.Features({"image": datasets.Image()})
        return datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8), pixel)]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cache = str(tmp_path / "cache")
    for split, config, pixel in 2 * (("train", None, 1), ("test", None, 2), ("train", "c", 11)):
        where = {"dataset_name": "user/name", "dataset_split": split, "dataset_config_name": config}
        own = load_dataset("user/name", config, split, False)
        for source in (where, {"dataset": own}):
            assert load_images(**source, image_cache_dir=cache).pixels[0, 0, 0, 0] == pixel
        own.save_to_disk(tmp_path / "saved")  # in the place of what was there
        assert load_images(dataset_name=str(tmp_path / "saved")).pixels[0, 0, 0, 0] == pixel
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "emptied", "other"])
def test_a_damaged_file_is_passed_over_and_made_again(tmp_path, opened, damage):
    own = {"train_data_dir": pictures(tmp_path), "image_cache_dir": str(tmp_path / "cache")}
    expected = load_images(**own).pixels.clone()
    (kept,) = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    if damage == "other":
        load_images(**own, resolution=8)
        (other,) = set((tmp_path / "cache").iterdir()) - {kept}
        other.replace(kept)
    else:
        kept.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.warns(UserWarning, match=f"file {kept.name} in .*cache is not as it was written"):
        assert torch.equal(load_images(**own).pixels, expected)
    assert torch.equal(load_images(**own).pixels, expected)
    assert kept.read_bytes() == content


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("a broken picture", r"1\.png cannot be read"),
        ("a full disk", "cannot hold the images: No space left on device"),
        ("a file", "`image_cache_dir` .*cache cannot hold the images"),
    ],
)
def test_a_run_that_cannot_go_on_says_why_and_leaves_nothing_that_is_taken_for_pixels(
    tmp_path, monkeypatch, trouble, message
):
    where, cache = pictures(tmp_path), tmp_path / "cache"
    monkeypatch.setattr(load, "BLOCK", 1)  # the first picture is written before the second one is read
    if trouble == "a broken picture":
        (Path(where) / "b" / "1.png").write_bytes(b"no picture")
    if trouble == "a full disk":
        monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write_batch", full)
    if trouble == "a file":
        cache.write_text("taken")
    with pytest.raises(UserError, match=message):
        load_images(train_data_dir=where, image_cache_dir=str(cache))
    assert not cache.is_dir() or not list(cache.iterdir()), "something is left"


@pytest.mark.slow
def test_runs_at_once_see_the_same_pixels(tmp_path):
    where = pictures(tmp_path, 4)
    call = "from diffusers_ict.data.load import load_images; import sys; "
    call += "print(load_images(train_data_dir=sys.argv[1], image_cache_dir=sys.argv[2]).fingerprint())"
    command = [sys.executable, "-c", call, where, str(tmp_path / "cache")]
    with ThreadPoolExecutor(2) as runs:
        said = list(
            runs.map(
                lambda _: subprocess.run(command, capture_output=True, text=True, check=True, timeout=600), range(2)
            )
        )
    assert {one.stdout.strip() for one in said} == {load_images(train_data_dir=where).fingerprint()}
    assert len(list((tmp_path / "cache").iterdir())) == 1


# ---------------------------------------------------------------- several processes


@pytest.fixture
def rows() -> list[dict]:
    """1,200 pictures of several sizes and modes, whose first pixel is their number."""
    made = []
    for number in range(1200):
        picture = Image.new("L" if number % 4 == 3 else "RGB", (8 + number % 5, 8))
        picture.putpixel((0, 0), number % 256 if picture.mode == "L" else (number % 256,) * 3)
        made.append({"bytes": encoded(picture), "path": None})
    return made


def in_processes(monkeypatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


def test_two_processes_decode_what_one_does_though_torch_has_threads(rows, tmp_path, monkeypatch, opened):
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    own = {"dataset": data, "image_mode": "RGB", "center_crop": True, "resolution": 8}
    in_processes(monkeypatch, 1)
    alone = load_images(**own, image_cache_dir=str(tmp_path / "one"))
    assert len(opened) == 1201
    in_processes(monkeypatch, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.ones(512, 512) @ torch.ones(512, 512)).sum()  # OpenMP keeps threads that no fork has
        shared = load_images(**own, image_cache_dir=str(tmp_path / "two"))
    finally:
        torch.set_num_threads(threads)
    assert len(opened) == 1202
    assert len(list((tmp_path / "two").iterdir())) == 2
    assert shared.originals == alone.originals
    again = load_images(**own, image_cache_dir=str(tmp_path / "two"))
    assert len(opened) == 1203
    assert torch.equal(shared.pixels, alone.pixels)
    assert torch.equal(again.pixels, alone.pixels)


def test_a_picture_that_a_process_cannot_read_is_named(rows, tmp_path, monkeypatch):
    in_processes(monkeypatch, 2)
    rows[1100] = {"bytes": b"no picture", "path": "x.png"}
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    cache, own = tmp_path / "cache", {"image_mode": "RGB", "center_crop": True, "resolution": 8}
    with pytest.raises(UserError, match=r"image x\.png cannot be read \(its content is in no format"):
        load_images(dataset=data, image_cache_dir=str(cache), **own)
    assert all(path.suffix == ".arrow" for path in cache.iterdir()), "half a file is left"


LOADING = """
import sys
from accelerate import Accelerator
from diffusers_ict.data import transform
from diffusers_ict.data.load import load_images

open_picture, opened = transform.open_picture, []
transform.open_picture = lambda stored: opened.append(stored) or open_picture(stored)
accelerator = Accelerator()
images = load_images(train_data_dir=sys.argv[1], image_cache_dir=sys.argv[2], accelerator=accelerator)
print("opened", len(opened), images.fingerprint())
"""


@pytest.mark.slow
def test_of_two_processes_one_decodes_and_a_damaged_file_ends_both(tmp_path):
    where, script = pictures(tmp_path), tmp_path / "loading.py"
    script.write_text(LOADING)
    done = several_processes(2, str(script), where, tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-3000:]
    fingerprint = load_images(train_data_dir=where).fingerprint()
    assert sorted(line for line in done.stdout.splitlines() if "opened" in line) == [
        f"opened 1 {fingerprint}",
        f"opened 4 {fingerprint}",
    ]
    (Path(where) / "b" / "1.png").write_bytes(b"no picture")
    done = several_processes(2, str(script), where, tmp_path / "cache")
    assert done.returncode != 0
    assert "1.png cannot be read" in done.stderr
