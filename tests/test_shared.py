"""The processes of a machine share one decoded copy of the images."""

import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from conftest import write_npz
from short_run import final_tensors, run, several_processes

from diffusers_ict.data import images, shared
from diffusers_ict.data.images import load_images
from diffusers_ict.data.shared import load_shared
from diffusers_ict.errors import UserError


@pytest.fixture
def together(monkeypatch, tmp_path):
    """Call load_shared as two machines with two processes each, here threads; their images, and who decoded."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    decode, rank, decoded = images.decode, threading.local(), []
    monkeypatch.setattr(images, "decode", lambda *args: decoded.append(rank.own) or decode(*args))
    rank.own = -1
    barrier, said = threading.Barrier(4, timeout=60), {}

    def gather_object(own):
        said[rank.own] = own
        barrier.wait()
        return [one for number in range(4) for one in said[number]]

    monkeypatch.setattr(shared, "gather_object", gather_object)

    def call(folder, load):
        def process(number):
            rank.own = number
            accelerator = SimpleNamespace(
                num_processes=4,
                process_index=number,
                local_process_index=number % 2,
                is_local_main_process=number % 2 == 0,
                wait_for_everyone=barrier.wait,
            )
            return load_shared(accelerator, folder, load)

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(process, range(4))), sorted(decoded)

    return call


def test_one_process_of_each_machine_decodes_and_nothing_is_left(tmp_path, together):
    data = str(write_npz(tmp_path / "data.npz"))
    expected = load_images(dataset_name=data, class_conditional=True)
    found, decoded = together(
        None, lambda folder: load_images(dataset_name=data, class_conditional=True, image_cache_dir=folder)
    )
    assert decoded == [-1, 0, 2]
    for own in found:
        assert torch.equal(own.pixels, expected.pixels)
        assert torch.equal(own.labels, expected.labels)
        assert own.fingerprint() == expected.fingerprint()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_for_decoded_images_is_shared_and_kept(tmp_path, together):
    data = str(write_npz(tmp_path / "data.npz"))
    cache = str(tmp_path / "cache")
    found, _ = together(cache, lambda folder: load_images(dataset_name=data, image_cache_dir=folder))
    assert len({own.fingerprint() for own in found}) == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".bin", ".json"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_one_process_alone_keeps_its_images_in_memory():
    given = []
    load_shared(SimpleNamespace(num_processes=1), None, given.append)
    assert given == [None]


def test_nobody_waits_for_a_process_that_is_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(UserError, match="were not read by the first process"):
        shared._wait(tmp_path / "ready", gone.pid)


COUNTED = """
import os
from diffusers_ict.commands import train
from diffusers_ict.data import images

decode = images.decode


def counted(*args):
    with open(os.environ["DECODED"], "a") as file:
        file.write(os.environ["RANK"])
    return decode(*args)


images.decode = counted
raise SystemExit(train.main())
"""


@pytest.mark.slow
def test_of_two_processes_one_decodes_and_both_train_as_one(flags, tmp_path, monkeypatch):
    own = ["--loss", "ict", *flags, "--dropout", "0", "--max_train_steps", 6, "--gradient_accumulation_steps", 1]
    assert run(*own, "--train_batch_size", 8, "--output_dir", tmp_path / "one") == 0
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("DECODED", str(tmp_path / "decoded"))
    done = several_processes(2, str(script), *own, "--train_batch_size", 4, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "decoded").read_text() == "0"
    assert not [name for name in os.listdir(tmp_path / "temporary") if name.startswith("diffusers-ict-")]
    whole, split = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
    for key, value in split.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
