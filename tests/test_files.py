"""Files and folders that are written atomically."""

import hashlib
import os
import subprocess
import sys
import time

import pytest
from conftest import files_of

from diffusers_ict.files import atomic_file, atomic_folder, remove_left, sha256, staged_folder, write_text


def test_temporary_files_of_processes_that_are_gone_or_a_day_old_are_removed_and_others_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    with atomic_file(tmp_path / "a.txt") as ours:
        machine = ours.name.split(".")[-2].split("-")[0]
        assert ours.name.startswith(f".a.txt.{machine}-{os.getpid()}-")
        left = [f".a.txt.{machine}-{ended.pid}-00.tmp", *(f".a.txt.{who}.tmp" for who in ("17", "0a1b2c3d-1-00"))]
        stay = [f".a.txt.{machine}-{os.getppid()}-00.tmp", f".a.txt.0a1b2c3d-{ended.pid}-00.tmp", ".b.txt.17.tmp"]
        for name in (*left, *stay):
            (tmp_path / name).touch()
        for name in (*left[1:], stay[2]):
            os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
        write_text(tmp_path / "a.txt", "new")
        assert {path.name for path in tmp_path.iterdir()} == {"a.txt", *stay}
        ours.touch()
    (tmp_path / "deep" / f".c.{machine}-{ended.pid}-00.tmp").mkdir(parents=True)
    (tmp_path / ".other.tmp").touch()
    remove_left(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"a.txt", "deep", ".other.tmp", *stay[:2]}


def test_two_writers_of_one_file_do_not_meet_even_with_one_process_number(tmp_path):
    """Containers that share a disk may have the same one."""
    with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "a").read_text() == "first", "the outer one ends last"


@pytest.mark.parametrize("fsync", [False, True])
def test_a_folder_is_replaced_as_a_whole(tmp_path, fsync):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "made" / "folder", fsync=fsync) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / name).write_text(name)
            assert "new" not in str(files_of(tmp_path / "made" / "folder"))
    assert files_of(tmp_path) == {"made/folder/inner/new": b"new"}


def test_a_staged_folder_keeps_other_files(tmp_path):
    (tmp_path / "other").write_text("other")
    with staged_folder(tmp_path, last="index") as staged:
        for name in ("index", "part"):
            (staged / name).write_text(name)
    assert files_of(tmp_path) == {name: name.encode() for name in ("index", "part", "other")}


@pytest.mark.parametrize("write", [atomic_file, atomic_folder, lambda path: staged_folder(path, "last")])
def test_what_fails_leaves_neither_files_nor_folders(tmp_path, write):
    def fail() -> None:
        with write(tmp_path / "a" / "b") as temporary:
            if temporary.is_dir():
                (temporary / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
