"""Decoded images in Arrow files: the same in memory and on demand; a file that is cut is a sentence and no signal."""

import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from test_images import folder

from diffusers_ict.data import rows
from diffusers_ict.data.dataset import Images
from diffusers_ict.data.load import load_images
from diffusers_ict.data.rows import StoredRows, read_rows
from diffusers_ict.data.sampler import StepSampler, batches_of, step_loader
from diffusers_ict.errors import UserError

SHAPE, COUNT = (3, 5, 7), 23
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
SCHEMA = pa.schema([("pixels", pa.binary()), ("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string())])


def table(pixels: np.ndarray) -> pa.Table:
    count = len(pixels)
    columns = [[image.tobytes() for image in pixels], [7] * count, [*range(count)], ["RGB"] * count]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA)], schema=SCHEMA)


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Two files in batches of several sizes; those of the second are slices, whose first offset is not 0."""
    names = [str(tmp_path / name) for name in ("a.arrow", "b.arrow")]
    for name, whole, ends in zip(names, (table(PIXELS[:9]), table(PIXELS)), ((0, 4, 9), (9, 10, 17, 23))):
        with pa.OSFile(name, "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
            for first, end in pairwise(ends):
                writer.write_table(whole.slice(first, end - first))
    return names


@pytest.fixture
def on_demand(monkeypatch):
    monkeypatch.setattr(rows, "MEMORY_SHARE", 0)


def test_rows_on_demand_are_those_in_memory_bit_for_bit(paths, monkeypatch):
    whole, originals = read_rows(paths, SHAPE, COUNT, 1)
    monkeypatch.setattr(rows, "MEMORY_SHARE", 0)
    stored, again = read_rows(paths, SHAPE, COUNT, 1)
    assert isinstance(whole, torch.Tensor)
    assert isinstance(stored, StoredRows)
    assert np.array_equal(whole.numpy(), PIXELS)
    assert originals == again
    assert originals[7, 3, "RGB"] == 1
    assert (len(stored), stored.nbytes, stored.shape) == (COUNT, whole.nbytes, tuple(whole.shape))
    picked = (torch.tensor([22, 0, 9, 9, 8, -1]), torch.tensor([], dtype=torch.int64))
    for index in (slice(None), slice(3, 12), slice(20, 99), *picked):
        for one in (stored, pickle.loads(pickle.dumps(stored))):  # as spawned processes get it
            assert torch.equal(one[index], whole[index]), index
    with pytest.raises(IndexError):
        stored[torch.tensor([COUNT])]
    assert Images(stored).fingerprint() == Images(whole).fingerprint()
    assert torch.equal(Images(stored).pixels, whole)
    assert torch.equal(Images(stored)[5]["x"], whole[5])
    assert Images(stored).to("cpu:1").rows is stored, "one of several processes without GPUs has read all of them"
    assert Images(stored).to("meta").pixels.shape == whole.shape


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + 1])
def test_other_images_than_expected_are_refused(paths, count, on_demand):
    with pytest.raises(OSError, match="other images"):
        read_rows(paths, SHAPE, count, 1)
    with pytest.raises(OSError, match="other images"):
        read_rows(paths, (3, 7, 7), COUNT, 1)


def test_the_copies_of_all_processes_of_a_machine_must_fit_into_half_of_its_free_memory(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "free_memory", lambda: 4 * PIXELS.nbytes)
    kinds = [type(read_rows(paths, SHAPE, COUNT, copies)[0]) for copies in (1, 2, 3)]
    assert kinds == [torch.Tensor, torch.Tensor, StoredRows]
    own = {"train_data_dir": folder(tmp_path / "images", {"a.png": picture(0)}), "image_cache_dir": str(tmp_path / "c")}
    monkeypatch.setattr(rows, "free_memory", lambda: 4 * 32 * 32 * 3)
    for processes, kind in (("2", torch.Tensor), ("3", StoredRows)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert type(load_images(**own).rows) is kind


def test_the_limit_of_a_container_is_a_limit_of_memory(tmp_path, monkeypatch):
    if not any(line.startswith("0::") for line in Path("/proc/self/cgroup").read_text().splitlines()):
        pytest.skip("no control groups of version 2")
    monkeypatch.setattr(rows, "CGROUPS", tmp_path)
    unlimited = rows.free_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nactive_file 700\ninactive_file 300\n")
    assert rows.free_memory() > 10**6 <= unlimited
    (tmp_path / "memory.max").write_text("9000\n")
    assert rows.free_memory() == 9000 - 5000 + 1000, "files that are cached can be dropped"


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture
def images(tmp_path):
    """A function that loads 40 images, and the file that they are kept in."""
    where = folder(tmp_path / "images", {f"{number:02}.png": picture(number) for number in range(40)})

    def loaded() -> tuple[Images, Path]:
        found = load_images(train_data_dir=where, image_cache_dir=str(tmp_path / "cache"))
        return found, next((tmp_path / "cache").iterdir())

    return loaded


def trained_on(images: Images, workers: int) -> torch.Tensor:
    """Twenty images of a run's loader. A process of the loader that a signal ends is another error than ours."""
    loader = step_loader(images, StepSampler(0, 0, 40, 10, 10, range(2)), Accelerator(cpu=True), workers)
    return torch.cat([batch["x"] for batch in batches_of(loader)])


@pytest.mark.parametrize("workers", [1, 0])  # first where a signal ends another process than that of the tests
def test_a_file_that_is_cut_under_a_loaded_data_set_does_no_harm_in_memory(images, workers):
    loaded, file = images()
    expected = trained_on(loaded, 0)
    os.truncate(file, 200)
    assert torch.equal(trained_on(loaded, workers), expected)


@pytest.mark.parametrize("workers", [1, 0])
def test_a_file_that_is_cut_is_a_sentence_on_demand_and_one_that_is_unlinked_does_no_harm(images, workers, on_demand):
    loaded, file = images()
    expected = trained_on(loaded, 0)
    other = file.with_name("other")
    os.link(file, other)
    file.unlink()
    assert torch.equal(trained_on(loaded, workers), expected)
    other.rename(file)
    os.truncate(file, 50_000)
    with pytest.raises(UserError) as caught:
        trained_on(loaded, workers)
    assert str(caught.value).startswith(f"the file of decoded images {file} cannot be read any more (it is shorter ")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.warns(UserWarning, match="is not as it was written, so the images are decoded again"):
        assert torch.equal(trained_on(images()[0], 0), expected)


def test_a_disk_that_fails_is_a_sentence(images, on_demand):
    loaded, _ = images()

    class Failing:
        def read_at(self, size: int, position: int) -> bytes:
            raise OSError(5, "Input/output error")

    loaded.rows.files = [Failing()]
    with pytest.raises(UserError, match=r"images-.*\(Input/output error\): delete it and start again"):
        loaded[0]
