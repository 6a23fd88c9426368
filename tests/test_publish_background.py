"""Publishing while a run goes on: it never blocks training or ends it, and it ends with the program."""

import errno
import re
import threading
import time
from pathlib import Path

import pytest
from conftest import write_npz
from hub_client import NAME, SCRIPTS, client, push
from hub_stand_in import Fault

from diffusers_ict.hub.publish import BackgroundPublisher


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_background_publisher_keeps_the_newest_and_never_blocks(tmp_path):
    gate, pushed = threading.Event(), []

    def slow(staged: Path) -> str:
        gate.wait(10)
        pushed.append(staged.name)
        return ""

    publisher = BackgroundPublisher(slow)
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
        publisher.submit(lambda name=name: tmp_path / name)
        if name == "1":
            while publisher.waiting is not None:
                pass
    gate.set()
    assert publisher.finish() is None
    assert pushed == ["1", "3"]
    assert not list(tmp_path.iterdir()), "staged folders are left"


def test_the_background_publisher_survives_a_full_disk_and_tells_it_if_it_was_the_last(tmp_path):
    publisher = BackgroundPublisher(lambda staged: "")
    publisher.submit(full)
    assert "No space left on device" in publisher.finish()
    publisher.submit(lambda: tmp_path / "staged")
    assert publisher.finish() is None


def test_the_background_publisher_waits_for_a_bounded_time(tmp_path):
    never = threading.Event()
    publisher = BackgroundPublisher(lambda staged: str(never.wait()))
    publisher.submit(lambda: tmp_path)
    assert publisher.finish(0.01) == "publishing did not end within 0.01 seconds."
    never.set()
    assert publisher.finish() is None


LEAVES = """
import sys, time
from pathlib import Path
from diffusers_ict.hub.publish import BackgroundPublisher
publisher = BackgroundPublisher(lambda staged: time.sleep(1000))
Path(sys.argv[1]).mkdir()
publisher.submit(lambda: Path(sys.argv[1]))
print(publisher.finish(0.01))
"""


def test_a_program_that_ends_before_its_upload_leaves_no_staged_folder(hub, tmp_path):
    done = client(hub, tmp_path / "cache", "-c", LEAVES, tmp_path / "staged")
    assert done.stdout == "publishing did not end within 0.01 seconds.\n", done.stderr
    assert not (tmp_path / "staged").exists()


TRAIN = """
import sys
from diffusers_ict.commands import train
from diffusers_ict.hub.publish import BackgroundPublisher
BackgroundPublisher.finish.__defaults__ = (2.0,)
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
    assert done.stderr.count("publishing did not end within 2 seconds. Everything is in") == 1
    while "GONE /api/repos/create" not in hub.requests:  # the upload process has ended
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
