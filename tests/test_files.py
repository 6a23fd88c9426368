"""Files that are written atomically."""

import os
import subprocess
import sys

from diffusers_ict.files import write_text


def test_temporary_files_of_killed_processes_are_removed_and_others_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".a.txt.{ended.pid}.tmp", f".a.txt.{os.getppid()}.tmp", f".b.txt.{ended.pid}.tmp", ".a.txt.x.tmp"):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.txt", "new")
    left = {f".a.txt.{os.getppid()}.tmp", f".b.txt.{ended.pid}.tmp", ".a.txt.x.tmp", "a.txt"}
    assert {path.name for path in tmp_path.iterdir()} == left
