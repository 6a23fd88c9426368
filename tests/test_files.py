"""Files and folders that are written atomically."""

import hashlib
import os
import subprocess
import sys

import pytest
from conftest import files_of

from diffusers_ict.files import atomic_file, atomic_folder, sha256, staged_folder, write_text


def test_temporary_files_of_killed_processes_are_removed_and_others_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    for name in (f".a.txt.{ended.pid}.tmp", f".a.txt.{os.getppid()}.tmp", f".b.txt.{ended.pid}.tmp", ".a.txt.x.tmp"):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.txt", "new")
    left = {f".a.txt.{os.getppid()}.tmp", f".b.txt.{ended.pid}.tmp", ".a.txt.x.tmp", "a.txt"}
    assert {path.name for path in tmp_path.iterdir()} == left


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
