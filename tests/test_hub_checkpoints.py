"""What of a run is on the Hub, by --hub_strategy, and which run may replace what is there."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from conftest import write_npz
from faults.compare import check_same
from hub_client import NAME, SCRIPTS, client, connect
from hub_stand_in import Fault, Repository
from short_run import ACT, ICT, run

from diffusers_ict.errors import UserError
from diffusers_ict.files import TEMPORARY
from diffusers_ict.hub import checkpoint_upload
from diffusers_ict.hub.background import BackgroundPublisher
from diffusers_ict.hub.checkpoint_upload import check_replaces
from diffusers_ict.training.origin import note_of_old_strategy
from diffusers_ict.training.recipe import Recipe

# huggingface_hub sends large files in a way that its transport deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
LATEST = ["--resume_from_checkpoint", "latest"]
SENT = ["manifest.json", "state.json", "unet.safetensors"]


def pushing(strategy: str) -> list[str]:
    return ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", strategy]


def folders_of(repository: Repository) -> dict[str, int]:
    """The training checkpoints in a repository, and their steps; each is whole, or this fails."""
    named = sorted(name.rpartition("/")[0] for name in repository.files if name.endswith("/manifest.json"))
    for folder in named:
        manifest = json.loads(repository.files[f"{folder}/manifest.json"])
        held = {name for name in repository.files if name.startswith(f"{folder}/")}
        assert held == {f"{folder}/{name}" for name in (*manifest, "manifest.json")}
        assert all(len(repository.files[f"{folder}/{name}"]) == entry["bytes"] for name, entry in manifest.items())
    return {folder: json.loads(repository.files[f"{folder}/state.json"])["step"] for folder in named}


@pytest.fixture
def out(finished, tmp_path) -> Path:
    return tmp_path / "out"


def test_what_an_earlier_version_meant_by_checkpoint_is_told_once(tmp_path):
    recipe = Recipe(output_dir=str(tmp_path), push_to_hub=True, hub_model_id=NAME, hub_strategy="checkpoint")
    assert note_of_old_strategy(recipe) is None
    new = recipe.as_dict()
    old = {name: value for name, value in new.items() if name != "hub_stop_seconds"}
    for entries, told in ((old, True), (new, False), ({"hub_strategy": "checkpoint"}, False), ([], False)):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(entries))  # a resumed run writes it anew
        note = note_of_old_strategy(recipe)
        assert (note is not None) == told
        assert not told or "that is every_save now" in note
    (tmp_path / "recipe.yaml").rename(tmp_path / "old.yaml")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    named = {"output_dir": str(tmp_path / "out"), "config": str(tmp_path / "old.yaml")}
    assert note_of_old_strategy(Recipe(**named, push_to_hub=True, hub_model_id=NAME, hub_strategy="checkpoint"))
    assert note_of_old_strategy(Recipe(**named, push_to_hub=True, hub_model_id=NAME, hub_strategy="every_save")) is None


def test_uploads_that_fail_are_told_while_the_run_goes_on_and_what_was_pruned_before_them(out, monkeypatch):
    """Whoever may have to go on from the Hub has to know before the end."""
    monkeypatch.setattr("diffusers_ict.hub.background.subprocess.Popen", Ended)
    publisher = BackgroundPublisher(out, NAME, checkpoints="all")
    publisher.submit()
    links = Path(publisher.copy.name)
    assert (links / "checkpoint-12" / "state.json").samefile(out / "checkpoint-12" / "state.json")
    shutil.copytree(out / "checkpoint-12", out / "checkpoint-13")
    with pytest.warns(UserWarning, match=f"{NAME} was not published: exit code 2; the run goes on, and so do uploads"):
        publisher.submit()
    publisher.process.running = True
    (out / "checkpoint-13").rename(out / "checkpoint-14")
    publisher.submit()
    shutil.rmtree(out / "checkpoint-14")
    publisher.process.running = False
    with pytest.warns(UserWarning, match="checkpoint-14 was deleted before it could be uploaded, .*total_limit"):
        publisher.submit()
    publisher.finish()
    assert not list(out.glob(".publish-*"))


def test_on_another_disk_than_that_of_temporary_files_links_lie_in_the_folder_of_the_run(out, monkeypatch):
    """So that no checkpoint is written twice, or into memory."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == out.stat().st_dev:
        pytest.skip("there is no other disk here")
    monkeypatch.setattr("diffusers_ict.hub.background.tempfile.tempdir", str(elsewhere))
    monkeypatch.setattr("diffusers_ict.hub.background.subprocess.Popen", Ended)
    publisher = BackgroundPublisher(out, NAME, checkpoints="newest")
    publisher.submit()
    links = Path(publisher.copy.name)
    assert links.parent == out
    assert (links / "checkpoint-12" / "state.json").samefile(out / "checkpoint-12" / "state.json")
    assert not (links / "checkpoint-10").exists()
    assert TEMPORARY.fullmatch(links.name), "a later run would not remove what a kill leaves"
    publisher.finish()
    assert not links.exists()


class Ended:
    """A process that has failed."""

    def __init__(self, *args, **kwargs) -> None:
        self.running = False

    def poll(self) -> int | None:
        return None if self.running else 2

    def wait(self, seconds: float | None = None) -> int:
        return 2

    def kill(self) -> None: ...


class InThisProcess(BackgroundPublisher):
    """Publishes at once, without an interpreter of its own."""

    def submit(self) -> None:
        from diffusers_ict.commands import publish

        self.due, self.waiting = False, {path.name for path in checkpoint_upload.list_checkpoints(self.folder)[:1]}
        self._copy()
        words = [] if self.checkpoints is None else ["--training_checkpoints", self.checkpoints]
        assert publish.main([self.copy.name, "--hub_model_id", self.repo_id, *words, "--remove_output_dir"]) == 0
        self.copy.cleanup()


STRATEGIES = {
    "end": (1, {}),
    "every_save": (3, {}),
    "checkpoint": (3, {"last-checkpoint": 12}),
    "all_checkpoints": (3, {"checkpoint-5": 5, "checkpoint-10": 10, "checkpoint-12": 12}),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_uploads_what_transformers_means_by_it(hub, finished, tmp_path, monkeypatch, strategy):
    connect(monkeypatch, hub, tmp_path / "h")
    monkeypatch.setattr("diffusers_ict.training.opening.BackgroundPublisher", InThisProcess)
    shutil.rmtree(tmp_path / "out")
    assert run(*finished, "--ema_snapshot_steps", 4, *pushing(strategy)) == 0
    commits, folders = STRATEGIES[strategy]
    repository = hub.repositories[NAME]
    assert len(repository.commits) == commits
    assert folders_of(repository) == folders
    averages = [name for name in repository.files if name.startswith("averages/")]
    assert averages == ([f"averages/step-{step:07d}.safetensors" for step in (4, 8, 12)] if folders else [])
    assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.safetensors"} <= repository.files.keys()
    assert not list((tmp_path / "out").glob(".publish-*"))


def test_a_commit_replaces_the_checkpoint_before_and_what_was_of_it_alone(hub, published, out):
    aside = out.parent / "checkpoint-12"
    (out / "checkpoint-12").rename(aside)
    (out / "averages").mkdir()
    for step in (8, 12):  # that of 12 is newer than the checkpoint
        (out / "averages" / f"step-{step:07d}.safetensors").write_bytes(b"average")
    assert published(out, "--training_checkpoints", "newest") == 0
    repository = hub.repositories[NAME]
    assert folders_of(repository) == {"last-checkpoint": 10}
    assert [name for name in repository.files if "averages" in name] == ["averages/step-0000008.safetensors"]
    repository.files |= {
        "last-checkpoint/of-another-version.safetensors": b"",
        "averages/step-0000009.safetensors": b"",
    }
    repository.files |= {"averages/by-hand.txt": b"", "checkpoint-7/by-hand.txt": b""}
    aside.rename(out / "checkpoint-12")
    assert published(out, "--training_checkpoints", "newest") == 0
    assert folders_of(repository) == {"last-checkpoint": 12}
    assert sorted(name for name in repository.files if name.startswith(("averages", "checkpoint-"))) == [
        *("averages/by-hand.txt", "averages/step-0000008.safetensors", "averages/step-0000012.safetensors"),
        "checkpoint-7/by-hand.txt",
    ]
    # What is there is not sent again, not even to be compared.
    before = len(hub.bodies)
    assert published(out, "--training_checkpoints", "newest") == 0
    assert not any(b"last-checkpoint" in body for body in hub.bodies[before:])


def test_an_older_checkpoint_replaces_a_newer_one_only_on_purpose(hub, published, out, capsys):
    assert published(out, "--training_checkpoints", "all") == 0
    repository = hub.repositories[NAME]
    there = dict(repository.files)
    shutil.rmtree(out / "checkpoint-12")
    for which in ("newest", "all"):
        assert published(out, "--training_checkpoints", which) == 2
        assert "its training checkpoint has 12 steps, more than the 10 of this run" in capsys.readouterr().err
        assert repository.files == there
    assert published(out, "--training_checkpoints", "all", "--supersede") == 0
    assert folders_of(repository) == {"checkpoint-5": 5, "checkpoint-10": 10}


def test_a_damaged_checkpoint_is_not_sent(hub, published, out, capsys):
    weights = out / "checkpoint-12" / "unet.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert published(out, "--training_checkpoints", "newest") == 2
    assert "the files of checkpoint-12 are not as they were written" in capsys.readouterr().err
    assert not hub.repositories[NAME].files
    shutil.rmtree(out / "checkpoint-12")
    weights = out / "checkpoint-5" / "unet.safetensors"
    weights.write_bytes(b"damaged")
    assert published(out, "--training_checkpoints", "all") == 0
    assert folders_of(hub.repositories[NAME]) == {"checkpoint-10": 10}
    for number in (5, 10):
        shutil.rmtree(out / f"checkpoint-{number}")
    assert published(out, "--training_checkpoints", "all") == 2
    assert "holds no training checkpoint" in capsys.readouterr().err


def test_of_two_writers_at_once_the_second_looks_again(hub, published, out, capsys, monkeypatch):
    """Between its look at the repository and its commit, another process commits a newer checkpoint."""
    older = shutil.copytree(out, out.parent / "older")
    shutil.rmtree(older / "checkpoint-12")
    operations, number = checkpoint_upload.CheckpointUpload.operations, iter(range(100))

    def overtaken(self, folder, *args):
        found = operations(self, folder, *args)
        if next(number) == 0:
            assert published(out, "--training_checkpoints", "newest") == 0
        return found

    monkeypatch.setattr(checkpoint_upload.CheckpointUpload, "operations", overtaken)
    assert published(older, "--training_checkpoints", "newest") == 2
    assert "its training checkpoint has 12 steps, more than the 10 of this run" in capsys.readouterr().err
    assert folders_of(hub.repositories[NAME]) == {"last-checkpoint": 12}
    assert hub.repositories[NAME].commits == ["Upload consistency model"]


STATE = {"step": 6, "decisive": {"seed": 0, "data": "a", "learning_rate": 0.1}, "changes": []}
RAISED = {"step": 4, "setting": "learning_rate", "from": 0.1, "to": 0.2}


@pytest.mark.parametrize(
    ("ours", "theirs", "refusal"),
    [
        ({}, {}, None),
        ({}, {"step": 5}, None),
        ({}, {"step": 7}, "has 7 steps, more than the 6"),
        ({}, {"decisive": {"seed": 1}}, "another run, which has seed 1 where this one has 0"),
        ({}, {"decisive": {"data": "b"}}, "another run, which has other images where this one has these"),
        ({}, {"decisive": {"of another version": 1}}, None),
        ({"decisive": {"learning_rate": 0.2}, "changes": [RAISED]}, {"step": 4}, None),
        ({"decisive": {"learning_rate": 0.2}, "changes": [RAISED]}, {"decisive": {"learning_rate": 0.2}}, None),
        ({"decisive": {"learning_rate": 0.3}, "changes": [RAISED]}, {}, "learning_rate 0.2 where this one has 0.3"),
    ],
)
def test_a_run_replaces_its_own_earlier_checkpoints_alone(ours, theirs, refusal):
    def state(changes: dict) -> dict:
        return {**STATE, **changes, "decisive": {**STATE["decisive"], **changes.get("decisive", {})}}

    if refusal is None:
        check_replaces(state(ours), state(theirs))
        return
    with pytest.raises(UserError, match=refusal):
        check_replaces(state(ours), state(theirs))


# Waits for the upload after each checkpoint, so that a kill comes after a certain one: runs are short, uploads long.
KILLED = """
import os, signal, sys
from diffusers_ict.commands import train
from diffusers_ict.training import train as loop
from diffusers_ict.training.log import Metrics
how, at, *flags = sys.argv[1:]
push, count, steps = loop.push_run, Metrics.count_step, iter(range(1, 1000))
def pushing(run, step):
    push(run, step)
    if step < int(at):
        run.publisher.process.wait()
def counting(self, images):
    count(self, images)
    if next(steps) == int(at):
        os.kill(os.getpid(), getattr(signal, how))
loop.push_run, Metrics.count_step = pushing, counting
sys.exit(train.main(flags))
"""
COMMON = ["--max_train_steps", 12, "--checkpointing_steps", 4, "--checkpoints_total_limit", 2, *LATEST]
RUNS = {"ict": ICT, "act": ACT, "stream": [*ICT, "--streaming", "--shuffle_buffer", 10],
        "averages": [*ICT, "--ema_snapshot_steps", 3]}  # fmt: skip


@pytest.fixture
def command(flags, tmp_path):
    """command(kind, out): the words of a run; a stream reads a folder."""
    (tmp_path / "stream").mkdir()
    write_npz(tmp_path / "stream" / "1.npz")

    def words(kind: str, out: Path, *more) -> list[str]:
        data = ["--dataset_name", tmp_path / "stream"] * (kind == "stream")
        return [str(word) for word in [*flags, *RUNS[kind], *COMMON, *data, "--output_dir", out, *more]]

    return words


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_killed_and_its_folder_deleted_the_same_command_ends_bit_identical(hub, command, tmp_path, kind):
    whole, out, cache = tmp_path / "whole", tmp_path / "out", tmp_path / "cache"
    assert run(*command(kind, whole)) == 0
    own = command(kind, out, *pushing("checkpoint"))
    killed = client(hub, cache, "-c", KILLED, "SIGKILL", 11, *own)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    shutil.rmtree(out)
    assert folders_of(hub.repositories[NAME])["last-checkpoint"] == 8
    done = client(hub, cache, SCRIPTS / "train_ict.py", *own)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resumed     from {NAME} on the Hub, after 8 of 12 steps" in done.stdout
    check_same(whole, out, ignore="^(recipe.yaml|README.md|run.json)$")  # which hold the command
    assert folders_of(hub.repositories[NAME]) == {"last-checkpoint": 12}
    assert "checkpoint-4" not in {path.name for path in out.iterdir()}
    if kind == "averages":
        assert len([name for name in hub.repositories[NAME].files if name.startswith("averages/")]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, Fault("/commit/", "silent")], ids=["good", "silent"])
def test_a_run_that_is_stopped_uploads_its_checkpoint_in_bounded_time(hub, command, tmp_path, fault):
    hub.fault = fault
    own = command("ict", tmp_path / "out", *pushing("checkpoint"), "--hub_stop_seconds", 8 if fault else 300)
    start = time.monotonic()
    done = client(hub, tmp_path / "cache", "-c", KILLED, "SIGTERM", 3, *own)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "received SIGTERM, and stopped after step 3 of 12 with a checkpoint" in done.stderr
    if fault is None:
        assert folders_of(hub.repositories[NAME]) == {"last-checkpoint": 3}
        assert "was not published" not in done.stderr
    else:
        assert f"{NAME} was not published: it took longer than 8 seconds." in done.stderr
        assert not any(repository.files for repository in hub.repositories.values())
        assert time.monotonic() - start < 120
    assert not list((tmp_path / "out").glob(".publish-*"))
