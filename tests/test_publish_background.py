"""Publishing while a run goes on: it never blocks training or ends it, and it ends with the program."""

import json
import re
import time
from pathlib import Path

import pytest
from conftest import make_unet, write_npz
from hub_client import NAME, SCRIPTS, client, connect, push
from hub_stand_in import Fault

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.hub import publish
from diffusers_ict.hub.metadata import ConversionMetadata
from diffusers_ict.hub.publish import BackgroundPublisher


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    ConsistencyPipeline(make_unet().eval(), ICTScheduler()).save_pretrained(folder)
    facts = {"license": "mit", "shape": [1, 8, 8], "classes": None, "weights": "0", "parameters": 1, "notes": []}
    origin = {"origin": "a test", "source": "nobody/nothing", "source_on_hub": False, "second_sigma": 0.8}
    ConversionMetadata(**origin, **facts, version="0").write(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files of this process and those that it starts."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(publish.tempfile, "tempdir", str(tmp_path / "temporary"))
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


def test_a_full_disk_is_told_at_the_end_if_it_was_the_last(folder, place, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    publisher = BackgroundPublisher(folder, NAME)
    monkeypatch.setattr(publish.shutil, "copy2", full)
    publisher.submit()
    assert "a copy of it cannot be made: [Errno 28] No space left on device" in publisher.finish()
    assert not list(place.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("damage", [False, True])
def test_the_sentence_of_a_failed_upload_names_the_folder_of_the_run(folder, place, monkeypatch, damage):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if damage:
        (folder / "conversion.json").write_text(json.dumps({"origin": "lacks the rest"}))
    publisher = BackgroundPublisher(folder, NAME)
    publisher.submit()
    failure = publisher.finish()
    offline = f"{NAME} was not published: HF_HUB_OFFLINE is set."
    assert failure.startswith(f"{folder}/conversion.json lacks 'source'" if damage else offline)
    assert not list(place.iterdir())


LEAVES = """
import sys
from pathlib import Path
from diffusers_ict.hub.publish import BackgroundPublisher
publisher = BackgroundPublisher(Path(sys.argv[1]), "someone/my-digits")
publisher.submit()
publisher.timeout = float(sys.argv[2])
if publisher.timeout:
    print(publisher.finish())
"""


@pytest.mark.parametrize("seconds", [0, 0.5], ids=["a program that ends", "a program that waits"])
def test_an_upload_that_hangs_ends_with_the_program_and_leaves_nothing(hub, folder, place, seconds):
    hub.fault = Fault("", "silent")
    done = client(hub, place.parent / "home", "-c", LEAVES, folder, seconds)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{NAME} was not published: it took longer than 0.5 seconds.\n" * (seconds > 0)
    assert not list(place.iterdir())


TRAIN = """
import sys
from diffusers_ict.commands import train
from diffusers_ict.hub.publish import BackgroundPublisher
BackgroundPublisher.timeout = 20.0
sys.exit(train.main(sys.argv[1:]))
"""


def training(base: Path) -> list[str]:
    write_npz(base / "data.npz")
    own = ["--dataset_name", base / "data.npz", "--max_train_steps", 8, "--train_batch_size", 4]
    more = ["--num_validation_images", 4, "--output_dir", base / "run", "--push_to_hub", "--hub_model_id", NAME]
    return [*own, *more, "--hub_strategy", "checkpoint", "--checkpointing_steps", 2]


@pytest.mark.slow
def test_training_ends_with_a_hub_that_never_answers(hub, tmp_path):
    hub.fault = Fault("", "silent")
    done = client(hub, tmp_path / "cache", "-c", TRAIN, *training(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"was not published: .* longer than 20 seconds.* Everything is in", done.stderr)) == 1
    while not any(request.startswith("GONE") for request in hub.requests):  # the upload process has ended
        time.sleep(0.01)
    hub.fault = None
    assert push(hub, tmp_path / "run", tmp_path / "cache").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("where", "status"), [("/api/repos/create", 403), ("/commit/", 401)])
def test_a_failing_hub_does_not_stop_training_and_publishing_is_finished_later(hub, tmp_path, where, status):
    hub.failures = [(where, status)] * 20
    done = client(hub, tmp_path / "cache", SCRIPTS / "train_ict.py", *training(tmp_path))
    assert done.returncode == 0
    assert len(re.findall("was not published", done.stderr)) == 1
    assert "finish with diffusers-ict publish" in done.stderr
    hub.failures = []
    assert push(hub, tmp_path / "run", tmp_path / "cache").returncode == 0
