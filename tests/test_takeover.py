"""Resuming from another checkpoint than the newest, or in another folder: nothing is shadowed, pruned or taken over."""

import shutil

import pytest
from short_run import ACT, assert_refused, run

from diffusers_ict.training import checkpoint
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe

BRIEFLY = ["--max_train_minutes", 1e-6]
LATEST = ["--resume_from_checkpoint", "latest"]


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def test_a_run_that_goes_on_from_an_older_checkpoint_is_what_latest_finds(finished, tmp_path):
    out = tmp_path / "out"
    changed = [*finished, "--resume_with_changes", "--learning_rate", 1e-4]
    with pytest.warns(UserWarning, match=r"renamed to superseded-\*: checkpoint-12, checkpoint-10"):
        assert run(*changed, *BRIEFLY, "--resume_from_checkpoint", out / "checkpoint-5") == 3
    superseded = ["superseded-checkpoint-10", "superseded-checkpoint-12"]
    assert names(out) == ["checkpoint-5", "checkpoint-6", *superseded]
    content = bytearray((out / "log.jsonl").read_bytes())
    content[5] ^= 0x80  # a damaged log does not stop a resume
    (out / "log.jsonl").write_bytes(content)
    assert run(*changed, *LATEST) == 0
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == list(range(2, 13))
    changes = checkpoint.load_latest(out).state["changes"]
    assert [change["step"] for change in changes] == [5]


def test_a_run_does_not_take_over_the_folder_of_another(finished, tmp_path, capsys):
    other = shutil.copytree(tmp_path / "out", tmp_path / "other")
    there = ["--resume_from_checkpoint", tmp_path / "out" / "checkpoint-5", "--output_dir", other]
    assert_refused(tmp_path, capsys, "holds another run than that of --resume_from_checkpoint", *finished, *there)


@pytest.mark.parametrize("resuming", [False, True])
def test_a_run_that_lives_while_another_reads_its_images_is_not_overwritten(
    finished, tmp_path, monkeypatch, capsys, resuming
):
    """It ended before the other one took the lock, so that only the contents of the folder tell of it."""
    out, load = tmp_path / "late", Recipe.load
    if resuming:
        shutil.copytree(tmp_path / "out" / "checkpoint-5", out / "checkpoint-5")

    def loading(self, *args):
        shutil.copytree(tmp_path / "out", out, dirs_exist_ok=True)
        return load(self, *args)

    monkeypatch.setattr(Recipe, "load", loading)
    own = ["--resume_from_checkpoint", out / "checkpoint-5"] if resuming else []
    assert run(*finished, *own, "--output_dir", out) == 2
    assert "was written to by another run meanwhile: start this one again" in capsys.readouterr().err
    assert names(out) == ["checkpoint-10", "checkpoint-12", "checkpoint-5"]
    assert len(read_log(out / "log.jsonl")) == 12


def test_files_of_others_in_the_folder_are_no_run_and_augmentation_can_be_added_with_changes(flags, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "slurm-12.out").write_text("queued")
    own = [*flags, "--max_train_steps", 8, "--output_dir", out, "--image_cache_dir", out / "cache"]
    without = [flag for flag in ACT if "augment" not in flag]
    assert run(*without, *own, *BRIEFLY, *LATEST) == 3
    assert run(*ACT, *own, "--resume_with_changes", *LATEST) == 0
    assert (out / "slurm-12.out").read_text() == "queued"
    assert any(entry.get("augment_p") for entry in read_log(out / "log.jsonl"))
