"""Processes that decode: the pictures are those of one process, and nothing is lost where a process fails."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_ict.data import decode, workers
from diffusers_ict.data.images import read_images
from diffusers_ict.data.picture_format import PictureFormat
from diffusers_ict.data.source import Source
from diffusers_ict.data.workers import Workers
from diffusers_ict.errors import UserError


@pytest.fixture
def files(tmp_path) -> list[Path | bytes]:
    """Pictures of several kinds and sizes: every second one by its path, the others by their content."""
    rng, found = np.random.default_rng(0), []
    for number in range(70):
        picture = Image.fromarray(rng.integers(0, 256, (9 + number % 5, 11, 3), np.uint8))
        path = tmp_path / f"{number:03}.{('png', 'jpg', 'webp')[number % 3]}"
        picture.convert("L" if number % 4 == 3 else "RGB").save(path)
        found.append(path if number % 2 else path.read_bytes())
    return found


@pytest.fixture
def many(monkeypatch):
    """Two cores, and every data set large enough for workers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(workers, "EACH", 1)


FORM = {"resolution": 8, "center_crop": True, "image_mode": "RGB"}


def test_pixels_and_report_are_those_of_one_process(files, monkeypatch):
    alone = read_images(Source(files, len(files)), **FORM)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(workers, "EACH", 1)
    monkeypatch.setattr(decode, "open_picture", Opened(decode.open_picture))
    shared = read_images(Source(files, len(files)), **FORM)
    assert decode.open_picture.times == decode.CHUNK  # those beside the first, which shows the shape
    assert shared.pixels.equal(alone.pixels)
    assert shared.originals == alone.originals


class Opened:
    """`open_picture` of this process, and how often it was called."""

    def __init__(self, function):
        self.function, self.times = function, 0

    def __call__(self, file):
        self.times += 1
        return self.function(file)


def test_a_file_that_cannot_be_read_is_named_as_by_one_process(files, many):
    files[40] = b"no picture"
    with pytest.raises(UserError, match=r"number 40 cannot be read \(its content is in no format"):
        read_images(Source(files, len(files)), **FORM)


def test_a_worker_goes_on_after_a_chunk_that_it_cannot_convert():
    good = Image.new("RGB", (4, 4), "red")
    stored = BytesIO()
    good.save(stored, "png")
    with Workers(PictureFormat(), 1000, 2) as own:
        assert own.convert([stored.getvalue(), b"no picture"]) is None
        (converted,) = own.convert([stored.getvalue()])
        assert np.array_equal(converted.pixels, np.asarray(good))
        assert (converted.size, converted.mode) == ((4, 4), "RGB")
        assert own.convert([np.zeros((4, 4))]) is None  # no file
        started = own._started
    assert len(started) == 1, "one is enough for one thread, and no array needs any"
    assert all(worker.process.poll() is not None for worker in started)


@pytest.mark.parametrize("program", ["", "raise SystemExit(1)", "print()", "import time; print('{', flush=True)"])
def test_where_workers_fail_the_images_are_read_all_the_same(program, files, many, monkeypatch, capfd):
    alone = read_images(Source(files, len(files)), **FORM)
    monkeypatch.setattr(workers, "PROGRAM", program)
    assert read_images(Source(files, len(files)), **FORM).pixels.equal(alone.pixels)


def test_a_worker_may_be_greeted_and_spoken_to_by_others(files, many, monkeypatch, capfd):
    alone = read_images(Source(files, len(files)), **FORM)
    talking = "from diffusers_ict.data import workers; own = workers._convert; print('welcome'); "
    talking += "workers._convert = lambda *given: (print('hello', flush=True), own(*given))[1]; "
    monkeypatch.setattr(workers, "PROGRAM", talking + workers.PROGRAM)
    monkeypatch.setattr(decode, "open_picture", Opened(decode.open_picture))
    assert read_images(Source(files, len(files)), **FORM).pixels.equal(alone.pixels)
    assert decode.open_picture.times == decode.CHUNK


def test_an_answer_to_another_question_is_not_believed(monkeypatch):
    stored, line = BytesIO(), workers._line
    Image.new("L", (4, 4), 9).save(stored, "png")
    with Workers(PictureFormat(), 1000, 2) as own:
        (converted,) = own.convert([stored.getvalue()])
        assert (converted.pixels == 9).all()
        monkeypatch.setattr(workers, "_line", lambda value: line([value[0] + 1, *value[1:]]))
        assert own.convert([stored.getvalue()]) is None
        monkeypatch.undo()
        assert own.convert([stored.getvalue()]) is None, "what the worker says from now on may be late"


def test_processes_that_cannot_be_started_are_done_without(files, many, monkeypatch):
    def start(*args, **kwargs):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    alone = read_images(Source(files, len(files)), **FORM)
    monkeypatch.setattr(workers.subprocess, "Popen", start)
    assert read_images(Source(files, len(files)), **FORM).pixels.equal(alone.pixels)


def test_large_pictures_are_left_to_threads(monkeypatch):
    stored = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(stored, "png")
    with Workers(PictureFormat(), 1000, 2) as own:
        assert own.convert([stored.getvalue()] * 16) is None
        assert not own._started
