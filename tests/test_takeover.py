"""Resuming from another checkpoint than the newest, or in another folder: nothing is shadowed, pruned or taken over."""

import shutil

import pytest
from short_run import ACT, ICT, run

from diffusers_ict.training import checkpoint
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe

BRIEFLY = ["--max_train_minutes", 1e-6]


@pytest.fixture
def finished(flags, tmp_path):
    """Flags of a run of 12 steps that has ended, with checkpoints at 5, 10 and 12."""
    own = [*ICT, *flags, "--max_train_steps", 12, "--output_dir", tmp_path / "out"]
    assert run(*own) == 0
    return own


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def test_a_run_that_goes_on_from_an_older_checkpoint_is_what_latest_finds(finished, tmp_path, capsys):
    changed = [*finished, "--resume_with_changes", "--learning_rate", 1e-4]
    older = ["--resume_from_checkpoint", tmp_path / "out" / "checkpoint-5"]
    with pytest.warns(UserWarning, match=r"renamed to superseded-\*: checkpoint-12, checkpoint-10"):
        assert run(*changed, *BRIEFLY, *older) == 3
    assert names(tmp_path / "out") == [
        "checkpoint-5",
        "checkpoint-6",
        "superseded-checkpoint-10",
        "superseded-checkpoint-12",
    ]
    capsys.readouterr()
    assert run(*changed, "--resume_from_checkpoint", "latest") == 0
    assert [entry["step"] for entry in read_log(tmp_path / "out" / "log.jsonl")] == list(range(1, 13))
    changes = checkpoint.load_latest(tmp_path / "out").state["changes"]
    assert [change["step"] for change in changes] == [5]


def test_a_run_does_not_take_over_the_folder_of_another(finished, tmp_path, capsys):
    other = shutil.copytree(tmp_path / "out", tmp_path / "other")
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    there = ["--resume_from_checkpoint", tmp_path / "out" / "checkpoint-5", "--output_dir", other]
    assert run(*finished, *there) == 2
    assert "holds another run than that of --resume_from_checkpoint" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == before
    assert run(*finished, *there[:-1], tmp_path / "new") == 0


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


def test_files_of_others_in_the_folder_are_no_run(flags, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "slurm-12.out").write_text("queued")
    own = [*ICT, *flags, "--max_train_steps", 6, "--output_dir", out, "--image_cache_dir", out / "cache"]
    assert run(*own, *BRIEFLY, "--resume_from_checkpoint", "latest") == 3
    assert run(*own, "--resume_from_checkpoint", "latest") == 0
    assert (out / "slurm-12.out").read_text() == "queued"


def test_a_damaged_log_does_not_stop_a_resume(finished, tmp_path):
    log = tmp_path / "out" / "log.jsonl"
    content = bytearray(log.read_bytes())
    content[5] ^= 0x80
    log.write_bytes(content)
    shutil.rmtree(tmp_path / "out" / "checkpoint-12")
    assert run(*finished, "--resume_from_checkpoint", "latest") == 0
    assert [entry["step"] for entry in read_log(log)] == list(range(2, 13))


def test_augmentation_can_be_added_with_changes(flags, tmp_path):
    without = [flag for flag in ACT if "augment" not in flag]
    own = [*flags, "--max_train_steps", 8, "--output_dir", tmp_path / "out"]
    assert run(*without, *own, *BRIEFLY) == 3
    assert run(*ACT, *own, "--resume_with_changes", "--resume_from_checkpoint", "latest") == 0
    assert any(entry.get("augment_p") for entry in read_log(tmp_path / "out" / "log.jsonl"))
