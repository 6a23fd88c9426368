"""Runs that go on from the Hub: bit for bit into an empty folder, and one sentence wherever they cannot."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import files_of
from faults.compare import check_same
from hub_client import NAME
from hub_stand_in import Fault, Repository
from short_run import assert_bitwise_equal, assert_refused, final_tensors, run, two_processes

from diffusers_ict.hub import checkpoint_on_hub
from diffusers_ict.hub.background import BackgroundPublisher

# huggingface_hub sends large files in a way that its transport deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
LATEST, FROM_HUB = ["--resume_from_checkpoint", "latest"], ["--resume_from_checkpoint", "hub"]
REPOSITORY = ["--hub_model_id", NAME]
PUSHING = [*REPOSITORY, "--push_to_hub", "--hub_strategy", "checkpoint"]


@pytest.fixture
def without_uploads(monkeypatch):
    """Those are not what is tested."""
    monkeypatch.setattr(BackgroundPublisher, "submit", lambda self: None)


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """The folder of a finished run of 12 steps, as it was after 10."""
    shutil.rmtree(tmp_path / "out" / "checkpoint-12")
    return tmp_path / "out"


@pytest.fixture
def uploaded(hub, published, out) -> Repository:
    """That run on the Hub, and not here any more."""
    assert published(out, "--training_checkpoints", "newest") == 0
    shutil.rmtree(out)
    return hub.repositories[NAME]


def steps_there(repository: Repository, folder: str = "last-checkpoint") -> int:
    return json.loads(repository.files[f"{folder}/state.json"])["step"]


@pytest.mark.parametrize("wanted", [LATEST, FROM_HUB], ids=["latest", "hub"])
def test_a_run_goes_on_from_the_hub_in_an_empty_folder(finished, uploaded, whole, out, wanted, capsys):
    assert len(uploaded.commits) == 1, "one commit, whose manifest comes with all the others"
    assert steps_there(uploaded) == 10
    assert not {name for name in uploaded.files if name.startswith("checkpoint-")}
    assert run(*finished, *REPOSITORY, *wanted) == 0
    assert f"resumed     from {NAME} on the Hub, after 10 of 12 steps" in capsys.readouterr().out
    assert_bitwise_equal(whole, out)
    check_same(whole, out, ignore="^(recipe.yaml|README.md|checkpoint-5/.*)$")


def test_what_is_here_comes_first_and_the_hub_second(finished, uploaded, whole, out, tmp_path, capsys):
    """The other way round, what is here would be lost."""
    for here, wanted, message in (
        ("checkpoint-12", FROM_HUB, "on the Hub has 10 steps, and that of --output_dir"),
        ("checkpoint-5", [], "holds another run: add --resume_from_checkpoint latest"),
    ):
        shutil.copytree(whole / here, out / here)
        shutil.copy(whole / "recipe.yaml", out)
        assert_refused(out, capsys, message, *finished, *PUSHING, *wanted)
        shutil.rmtree(out)
    shutil.copytree(whole, out)
    for step in (10, 12):
        shutil.rmtree(out / f"checkpoint-{step}")
    short = [*finished, "--max_train_steps", 12, *REPOSITORY]
    before = files_of(out / "checkpoint-5")
    assert run(*short, *FROM_HUB) == 0
    assert "after 10 of 12 steps" in capsys.readouterr().out
    assert_bitwise_equal(whole, out)
    assert files_of(out / "checkpoint-5") == before
    # Nothing is downloaded that is here.
    shutil.rmtree(out / "checkpoint-12")
    assert run(*short, *FROM_HUB) == 0
    assert "on the Hub, after" not in capsys.readouterr().out
    assert not list(out.glob("superseded-*"))


def test_a_newer_checkpoint_on_the_hub_is_told_to_who_takes_an_older_one(
    finished, uploaded, whole, out, without_uploads
):
    shutil.copytree(whole, out)
    for step in (10, 12):
        shutil.rmtree(out / f"checkpoint-{step}")
    told = "has a training checkpoint of 10 steps, and this run goes on from 5 steps .*: to take that of the Hub, give"
    with pytest.warns(UserWarning, match=told):
        assert run(*finished, *PUSHING, *LATEST, "--checkpointing_steps", 1000) == 0
    assert_bitwise_equal(whole, out)


@pytest.mark.parametrize("start", [[], LATEST, FROM_HUB], ids=["new", "latest", "hub"])
def test_a_changed_recipe_is_refused_and_nothing_is_written(finished, uploaded, out, capsys, start):
    there = dict(uploaded.files)
    changed = [*finished, *PUSHING, *start, "--learning_rate", "5e-4"]
    message = (
        "made with learning_rate 0.001 and this run has 0.0005" if start else "add --resume_from_checkpoint latest"
    )
    assert_refused(out, capsys, message, *changed)
    assert uploaded.files == there


def test_a_repository_of_another_run_is_refused_before_training(finished, uploaded, whole, out, tmp_path, capsys):
    """By a run that has a folder of its own: its checkpoints would never get there."""
    other = [*finished, "--output_dir", tmp_path / "other", "--learning_rate", "5e-4"]
    assert run(*other, "--max_train_steps", 12) == 0
    message = f"nothing could be uploaded to {NAME}: it holds a training checkpoint of another run, which has learning_"
    assert_refused(tmp_path / "other", capsys, message, *other, *PUSHING, *LATEST)


def test_a_run_may_change_what_it_takes_from_the_hub(finished, uploaded, out, capsys):
    changed = [*finished, *REPOSITORY, *LATEST, "--learning_rate", "5e-4", "--resume_with_changes"]
    assert run(*changed) == 0
    state = json.loads((out / "checkpoint-12" / "state.json").read_text())
    assert [(change["step"], change["setting"]) for change in state["changes"]] == [(10, "learning_rate")]


def test_a_private_repository_needs_a_token(finished, uploaded, out, monkeypatch, capsys):
    uploaded.private = True
    monkeypatch.delenv("HF_TOKEN")
    for wanted in (LATEST, FROM_HUB):
        message = f"what {NAME} on the Hub holds is not known: it is private or does not exist, and there is no token"
        assert_refused(out, capsys, message, *finished, *REPOSITORY, *wanted)


@pytest.mark.parametrize("answer", [503, "reset", "{}", "half", "silent"])
def test_a_run_is_not_begun_anew_while_the_hub_is_away(finished, hub, uploaded, out, monkeypatch, capsys, answer):
    monkeypatch.setattr(checkpoint_on_hub, "ANSWER_SECONDS", 0.2 if answer == "silent" else 20.0)
    hub.fault = Fault(f"/api/models/{NAME}", answer)
    for own in (REPOSITORY, PUSHING):
        assert_refused(out, capsys, "and the run may be there: start again later", *finished, *own, *LATEST)
    assert_refused(out, capsys, "start again later, or go on from a checkpoint", *finished, *REPOSITORY, *FROM_HUB)


def test_a_run_goes_on_with_what_is_here_while_the_hub_is_away(finished, hub, whole, out, published, without_uploads):
    hub.fault = Fault("", 503)
    with pytest.warns(UserWarning, match="Hub holds is not known: the Hub answered 503; the run goes on without it"):
        assert run(*finished, *PUSHING, *LATEST, "--checkpointing_steps", 1000) == 0
    assert_bitwise_equal(whole, out)


def test_without_a_repository_a_run_begins_and_hub_is_refused(finished, hub, out, published, capsys):
    shutil.rmtree(out)
    assert_refused(out, capsys, "has no training checkpoint: --resume", *finished, *REPOSITORY, *FROM_HUB)
    assert_refused(out, capsys, "hub needs --hub_model_id USER/NAME, got none", *finished, *FROM_HUB)
    assert_refused(out, capsys, "must have the form", *finished, "--hub_model_id", "x", *LATEST)
    assert run(*finished, *REPOSITORY, *LATEST, "--max_train_steps", 4) == 0


@pytest.mark.parametrize("name", ["last-checkpoint/unet.safetensors", "last-checkpoint/state.json", "log.jsonl"])
def test_what_does_not_arrive_as_it_was_sent_is_refused(finished, hub, uploaded, out, capsys, name):
    hub.fault = Fault(f"/resolve/{uploaded.sha}/{name}", "half")
    assert_refused(out, capsys, "start again", *finished, *REPOSITORY, *LATEST)
    hub.fault = None
    content = uploaded.files[name]
    uploaded.files[name] = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    uploaded.commits.append("by hand")
    if name != "log.jsonl":  # which has no hash of ours
        assert_refused(out, capsys, "cannot be", *finished, *REPOSITORY, *LATEST)


def test_a_download_is_of_one_commit_whatever_is_committed_meanwhile(
    finished, uploaded, whole, out, tmp_path, monkeypatch
):
    fetch = checkpoint_on_hub.snapshot_download

    def meanwhile(*args, **kwargs):
        uploaded.earlier[uploaded.sha] = dict(uploaded.files)
        uploaded.files.update(dict.fromkeys(uploaded.files, b"of another run"))
        uploaded.commits.append("in between")
        return fetch(*args, **kwargs)

    monkeypatch.setattr(checkpoint_on_hub, "snapshot_download", meanwhile)
    assert run(*finished, *REPOSITORY, *LATEST) == 0
    assert_bitwise_equal(whole, out)


@pytest.mark.slow
def test_all_processes_go_on_from_what_the_first_one_downloaded(finished, uploaded, whole, out):
    halves = [*finished, "--gradient_accumulation_steps", 1, "--dropout", 0, *REPOSITORY, *LATEST]
    done = two_processes("train_ict.py", *halves)
    assert done.returncode != 0
    assert "made with dropout 0.3 and this run has 0.0" in done.stderr
    assert not out.exists()
    done = two_processes("train_ict.py", *halves, "--resume_with_changes")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("on the Hub, after 10 of 12 steps") == 1
    assert final_tensors(out).keys() == final_tensors(whole).keys()
    assert not list(out.glob(".*.tmp"))
