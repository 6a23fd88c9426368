import errno
import json
import os
from pathlib import Path

import pytest
import torch

from diffusers_ict.errors import UserError
from diffusers_ict.training import checkpoint
from diffusers_ict.training.checkpoint import Checkpoint


def some(step: int) -> Checkpoint:
    return Checkpoint({"step": step}, {"weights": {"w": torch.full((4,), float(step))}})


def test_round_trip_is_bitwise_and_holds_no_pickle(tmp_path):
    values = torch.randn(100)
    path = checkpoint.save(tmp_path, 7, Checkpoint({"step": 7, "p": 0.1 + 0.2}, {"a": {"x|y": values}}))
    loaded = checkpoint.load(path)
    assert loaded.state == {"step": 7, "p": 0.1 + 0.2}
    assert torch.equal(loaded.tensors["a"]["x|y"], values)
    assert {f.suffix for f in path.iterdir()} == {".safetensors", ".json"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {f.name for f in path.iterdir()} - {"manifest.json"}


def test_what_is_loaded_does_not_change_with_its_file(tmp_path):
    """Tensors in a mapped file would: with the file cut off, whoever reads them is ended by SIGBUS."""
    values = torch.randn(5000)
    path = checkpoint.save(tmp_path, 1, Checkpoint({"step": 1}, {"a": {"x": values}}))
    loaded = checkpoint.load(path).tensors["a"]["x"]
    file = path / "a.safetensors"
    with file.open("r+b") as opened:  # in place, as another process may
        opened.write(bytes(file.stat().st_size))
    assert torch.equal(loaded, values)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(file) not in maps.read_text()


def test_a_checkpoint_that_is_cut_after_it_was_checked_is_refused(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path, 1, some(1))
    cut(path)
    monkeypatch.setattr(checkpoint, "find_corruption", lambda _: None)
    with pytest.raises(UserError, match=r"checkpoint-1 cannot be used: .*; resume from another one"):
        checkpoint.load(path)


def names(folder) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(folder)]


def test_the_newest_are_kept_and_older_ones_pruned_after_saving(tmp_path):
    for step in (1, 5, 10):
        checkpoint.save(tmp_path, step, some(step))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5", "checkpoint-1"]
    checkpoint.save(tmp_path, 100, some(100), keep=2)
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-10"]
    assert checkpoint.load_latest(tmp_path).state["step"] == 100


def flip(path):
    file = path / "weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def cut(path):
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip, cut, "state.json", "manifest.json", "{", "{}", "[]", "null",
                                    '{"state.json": {}}', '{"state.json": 3}'])  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_with_a_warning(tmp_path, damage):
    """`damage` may also be a file that is missing, or a manifest that says too little."""
    checkpoint.save(tmp_path, 1, some(1))
    newest = checkpoint.save(tmp_path, 2, some(2))
    if callable(damage):
        damage(newest)
    elif (newest / damage).exists():
        (newest / damage).unlink()
    else:
        (newest / "manifest.json").write_text(damage)
    with pytest.raises(UserError, match=r"checkpoint-2 cannot be used"):
        checkpoint.load(newest)
    with pytest.warns(UserWarning, match="passing over the checkpoint checkpoint-2"):
        assert checkpoint.load_latest(tmp_path).state["step"] == 1


def test_any_flipped_bit_of_any_file_is_found(tmp_path):
    path = checkpoint.save(tmp_path, 1, some(1))
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        for at in range(len(raw)):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << at % 8)]) + raw[at + 1 :])
            # A manifest may change where it says nothing: in the white space between its entries.
            if checkpoint.find_corruption(path) is None:
                assert file.name == "manifest.json"
                assert checkpoint.load(path).state == {"step": 1}
        file.write_bytes(raw)
    assert checkpoint.find_corruption(path) is None


def test_damaged_checkpoints_do_not_count_when_older_ones_are_pruned(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, some(step), keep=2)
    flip(checkpoint.save(tmp_path, 9, some(9)))  # of a run that was resumed from checkpoint-2
    flip(tmp_path / "checkpoint-1")
    checkpoint.save(tmp_path, 3, some(3), keep=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-2"]
    flip(tmp_path / "checkpoint-3")
    checkpoint.save(tmp_path, 4, some(4), keep=2)
    assert checkpoint.load_latest(tmp_path).state["step"] == 4
    assert checkpoint.describe_newest(tmp_path) == "checkpoint-4 is the newest checkpoint"


@pytest.mark.parametrize("place", [(checkpoint, "save_file"), (os, "fsync")], ids=["save_file", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_full_disk_or_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch, error, place):
    checkpoint.save(tmp_path, 1, some(1), keep=1)

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*place, fails)
        with pytest.raises((UserError, KeyboardInterrupt)) as caught:
            checkpoint.save(tmp_path, 2, some(2), keep=1)
    if isinstance(error, OSError):
        assert "checkpoint-2 cannot be written: No space left on device; checkpoint-1 is" in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint.load_latest(tmp_path).state["step"] == 1
    checkpoint.save(tmp_path, 2, some(2), keep=1)
    assert checkpoint.load_latest(tmp_path).state["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"], "rests of the torn write are left"


def test_what_a_kill_in_a_save_or_in_pruning_left_is_deleted(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, some(step))
    (tmp_path / "checkpoint-1" / "manifest.json").unlink()
    (tmp_path / ".checkpoint-4.0a1b2c3d-17-00.tmp").mkdir()
    checkpoint.tidy(tmp_path, keep=3)
    assert list(tmp_path.glob(".*")) == []
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    checkpoint.tidy(tmp_path, keep=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-2"]
