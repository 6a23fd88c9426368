"""The cache of evaluations: what is damaged counts as absent, and two evaluations at once give the figures of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, write_npz
from evaluated import arguments, figures, refused

from diffusers_ict.evaluation import chunks
from diffusers_ict.evaluation.work import WorkFolders


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    """Images to be measured, and data beside them."""
    base = tmp_path_factory.mktemp("cached")
    write_npz(base / "data.npz", count=100)
    images = np.load(base / "data.npz")["images"]
    noisy = images + np.random.default_rng(0).integers(0, 30, images.shape)
    np.savez(base / "fakes.npz", images=noisy.clip(0, 255).astype(np.uint8))
    return base / "fakes.npz"


def flip(content: bytes) -> bytes:
    """One bit of the last tensor."""
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def zero(content: bytes) -> bytes:
    """The second half."""
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


DAMAGES = {
    "flipped": flip,
    "zeroed": zero,
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other metadata": lambda content: content.replace(b"data.npz", b"date.npz").replace(b'"d": 1', b'"d": 2'),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_statistics_are_told_and_made_again(fakes, tmp_path, capsys, name):
    whole = figures(fakes, tmp_path)
    (kept,) = (tmp_path / "cache").glob("reference-*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(DAMAGES[name](content))
    assert kept.read_bytes() != content
    shared = [fakes, "--reference", kept, *arguments(fakes, tmp_path)[3:]]
    refused(capsys, "is not a file of reference statistics, or a damaged one", *shared)
    with pytest.warns(UserWarning, match=rf"{kept.name} is damaged and is made again"):
        assert figures(fakes, tmp_path) == whole
    assert chunks.is_whole(kept)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "other metadata"])
def test_a_damaged_chunk_is_told_and_made_again(fakes, tmp_path, monkeypatch, name):
    monkeypatch.setattr(WorkFolders, "clean", lambda self: None)
    whole = figures(fakes, tmp_path)
    damaged = sorted((tmp_path / "cache" / "work").glob("*/chunk-*"))
    assert len(damaged) == 6, "three of the statistics, three of the samples"
    for path in damaged:
        path.write_bytes(DAMAGES[name](path.read_bytes()))
    next((tmp_path / "cache").glob("reference-*")).unlink()
    with pytest.warns(UserWarning, match="is damaged") as caught:
        assert figures(fakes, tmp_path) == whole
    told = "".join(str(warning.message) for warning in caught)
    assert all(f"{path} is damaged and is made again" in told for path in damaged)
    assert figures(fakes, tmp_path) == whole


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def cut_off(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks, "save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        chunks.save_features({"features": torch.zeros(2, 3)}, tmp_path / "chunk")
    assert not list(tmp_path.iterdir())


def test_two_evaluations_never_share_a_folder_of_work_and_a_later_one_takes_it_up(tmp_path):
    with WorkFolders(tmp_path, Accelerator()) as first:
        folder = first.claim("key")
        assert first.claim("key") == folder
        with WorkFolders(tmp_path, Accelerator()) as second:
            other = second.claim("key")
            assert other != folder
            assert second.claim("key") == other
            assert other.is_dir()
        with WorkFolders(tmp_path, Accelerator()) as resumed:
            assert resumed.claim("key") == other, "what the second one left is lost"
            resumed.clean()
        assert not other.exists()
        assert folder.is_dir()
    with WorkFolders(tmp_path, Accelerator()) as third:
        assert third.claim("key") == folder
        third.clean()
    assert not list((tmp_path / "work").iterdir())


SLOW = """
import time

def features(images, device):
    time.sleep(0.1)  # so that the other one is in the middle, too
    return images.float().flatten(1)[:, ::3] / 255
"""


@pytest.mark.slow
def test_two_at_once_with_a_cold_cache_both_give_the_figures_of_one(fakes, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    own = ["--extractor", tmp_path / "slow.py", "--batch_size", 5]
    whole = figures(fakes, tmp_path / "alone", *own)
    command = [sys.executable, str(ROOT / "train_scripts" / "evaluate.py"), *arguments(fakes, tmp_path, *own)]
    running = [
        subprocess.Popen(
            [*command, "--output_dir", str(tmp_path / f"{number}")], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        for number in range(3)
    ]
    for number, process in enumerate(running):
        _, err = process.communicate()
        assert process.returncode == 0, err[-3000:]
        assert json.loads((tmp_path / f"{number}" / "evaluation.json").read_text())["rows"] == whole
    assert not list((tmp_path / "cache" / "work").iterdir()), "finished work is left"
