"""Two machines, each with a disk of its own, rehearsed in network namespaces."""

from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import write_npz
from short_run import ICT, assert_bitwise_equal, final_tensors, run, words
from two_machines import Machine, Machines, obstacle, wait_until

from diffusers_ict.training.checkpoint import find_corruption, list_checkpoints

pytestmark = pytest.mark.slow
LATEST = ["--resume_from_checkpoint", "latest"]


@cache
def why_not() -> str | None:
    return obstacle()


@pytest.fixture
def machines(tmp_path):
    if why_not() is not None:
        pytest.skip(why_not())
    with Machines(tmp_path) as both:
        yield both


def train(machines: tuple[Machine, Machine], place: Path, flags: list, *other: object) -> tuple[list[int], list[str]]:
    """Run one command on both machines to its end; exit codes, and what was said. The second may have other flags."""
    logs = [place / f"{machine.name}.log" for machine in machines]
    each = [words(*flags), words(*flags, *other)]
    processes = [machine.launch(own, log) for machine, own, log in zip(machines, each, logs, strict=True)]
    return [process.wait(timeout=240) for process in processes], [log.read_text() for log in logs]


def test_two_machines_equal_one_process_and_lose_nothing_when_one_is_killed(machines, flags, tmp_path):
    first, second = machines
    own = [*ICT, *flags, "--dropout", "0", "--max_train_steps", 40, "--checkpointing_steps", 5, *LATEST]
    codes, told = train(machines, tmp_path, [*own, "--train_batch_size", 4])
    assert codes == [0, 0], told
    first.disk.rename(tmp_path / "whole")

    assert run(*own, "--train_batch_size", 8, "--output_dir", tmp_path / "one") == 0
    one = final_tensors(tmp_path / "one")
    for key, value in final_tensors(tmp_path / "whole" / "out").items():
        # The gradient of a key's bias is zero but for rounding, which Adam's ratio makes large.
        close = {"rtol": 1e-3, "atol": 2e-5} if ".to_k.bias" in key else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(value, one[key], **close, msg=lambda m, key=key: f"{key}: {m}")

    log = tmp_path / "left.log"
    killed, left = second.launch(words(*own), tmp_path / "killed.log"), first.launch(words(*own), log)
    wait_until(lambda: len(list_checkpoints(first.disk / "out")) > 1, 120, [killed, left])
    second.kill()
    assert killed.wait(timeout=60) != 0
    assert left.wait(timeout=60) != 0
    assert "train_ict.py: process 1 of the run is gone; checkpoint-" in log.read_text()
    for saved in list_checkpoints(first.disk / "out"):
        assert find_corruption(saved) is None
    assert not list(second.disk.rglob("checkpoint-*"))

    codes, told = train(machines, tmp_path, own)
    assert codes == [0, 0], told
    assert_bitwise_equal(tmp_path / "whole" / "out", first.disk / "out")


def test_two_machines_with_other_images_are_refused(machines, flags, tmp_path):
    other = write_npz(tmp_path / "other.npz", count=60)
    codes, told = train(machines, tmp_path, [*ICT, *flags], "--dataset_name", other)
    assert 0 not in codes
    assert all("process 1 has other values than process 0 of" in words for words in told)
    assert not list(tmp_path.rglob("checkpoint-*"))
