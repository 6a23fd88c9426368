"""Publishing while a run goes on: it never blocks training or ends it, and leaves no copy of the folder."""

import json
import re
import time
from pathlib import Path

import pytest
from hub_client import NAME, SCRIPTS, client, connect, digits_flags, push, save_converted
from hub_stand_in import Fault

from diffusers_ict.hub import background
from diffusers_ict.hub.background import BackgroundPublisher


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_converted(tmp_path / "model", None)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files of this process and those that it starts."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(background.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.slow
def test_a_folder_is_published_as_it_was_submitted_and_the_last_is_not_left_out(hub, folder, place, monkeypatch):
    connect(monkeypatch, hub, place.parent / "home")
    publisher = BackgroundPublisher(folder, NAME, private=True)
    for number in range(3):
        (folder / "evaluation.png").write_bytes(b"%d" % number)
        publisher.submit()
        (folder / "evaluation.png").write_bytes(b"while it is uploaded")
    assert publisher.finish() is None
    repository = hub.repositories[NAME]
    assert repository.private
    assert len(repository.commits) == 2, "the first, and the folder as it was in the end"
    assert repository.files["evaluation.png"] == b"while it is uploaded"
    assert [body for body in hub.bodies if b"commits" not in body and b"MA==" in body], "the first as it was submitted"
    assert not list(place.iterdir()), "a copy is left"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full disk", "damage", "offline"])
def test_what_fails_is_told_at_the_end_in_one_sentence_about_the_folder_of_the_run(folder, place, monkeypatch, fault):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if fault == "full disk":
        monkeypatch.setattr(background.shutil, "copy2", full)
    if fault == "damage":
        (folder / "conversion.json").write_text(json.dumps({"origin": "lacks the rest"}))
    publisher = BackgroundPublisher(folder, NAME)
    publisher.submit()
    told = {
        "full disk": f"{NAME} was not published: a copy of it cannot be made: [Errno 28] No space left on device.",
        "damage": f"{folder}/conversion.json lacks 'source'",
        "offline": f"{NAME} was not published: HF_HUB_OFFLINE is set.",
    }
    assert publisher.finish().startswith(told[fault])
    assert not list(place.iterdir())


LEAVES = """
import os, signal, sys
from pathlib import Path
from diffusers_ict.hub.background import BackgroundPublisher
folder, end, seconds = sys.argv[1:]
BackgroundPublisher.timeout = float(seconds)
publisher = BackgroundPublisher(Path(folder), "someone/my-digits")
publisher.submit()
if end == "waits":
    print(publisher.finish())
if end == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("end", "seconds"), [("ends", 60), ("waits", 0.5)])
def test_an_upload_that_hangs_ends_with_the_program_and_leaves_nothing(hub, folder, place, end, seconds):
    hub.fault = Fault("", "silent")
    done = client(hub, place.parent / "home", "-c", LEAVES, folder, end, seconds)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{NAME} was not published: it took longer than 0.5 seconds.\n" * (end == "waits")
    assert not list(place.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "seconds"), [(None, 600), (Fault("", "silent"), 10)], ids=["good", "silent"])
def test_an_upload_outlives_a_program_that_is_killed_in_bounded_time_and_removes_its_copy(
    hub, folder, place, fault, seconds
):
    hub.fault = fault
    assert client(hub, place.parent / "home", "-c", LEAVES, folder, "is killed", seconds).returncode == -9
    while list(place.iterdir()):
        time.sleep(0.01)
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1] * (fault is None)


TRAIN = """
import sys
from diffusers_ict.commands import train
from diffusers_ict.hub.background import BackgroundPublisher
BackgroundPublisher.timeout = 20.0
sys.exit(train.main(sys.argv[1:]))
"""


def training(base: Path) -> list[str]:
    own = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "every_save", "--checkpointing_steps", "2"]
    return [*digits_flags(base), *own]


@pytest.mark.slow
def test_training_ends_with_a_hub_that_never_answers(hub, tmp_path):
    hub.fault = Fault("", "silent")
    done = client(hub, tmp_path / "cache", "-c", TRAIN, *training(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the Hub was not asked whether it takes the licence cc-by-4.0" in done.stderr
    assert len(re.findall(r"was not published: .* longer than 20 seconds.* Everything is in", done.stderr)) == 1
    while not any(request.startswith("GONE") for request in hub.requests):  # the upload process has ended
        time.sleep(0.01)
    hub.fault = None
    assert push(hub, tmp_path / "my-digits", tmp_path / "cache").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("where", "status"), [("/api/repos/create", 403), ("/commit/", 401)])
def test_a_failing_hub_does_not_stop_training_and_publishing_is_finished_later(hub, tmp_path, where, status):
    hub.failures = [(where, status)] * 20
    done = client(hub, tmp_path / "cache", SCRIPTS / "train_ict.py", *training(tmp_path))
    assert done.returncode == 0
    assert len(re.findall("was not published", done.stderr)) == 1
    assert "finish with diffusers-ict publish" in done.stderr
    hub.failures = []
    assert push(hub, tmp_path / "my-digits", tmp_path / "cache").returncode == 0
