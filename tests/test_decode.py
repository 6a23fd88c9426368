"""Decoding on several cores: the result and the messages are those of one core."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_ict.data import decode
from diffusers_ict.data.images import load_images, read_images
from diffusers_ict.data.source import Source
from diffusers_ict.errors import UserError
from diffusers_ict.progress import progress_bar


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    """Each of which takes one picture after another, on any machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(decode, "CHUNK", 1)


def stored(tmp_path: Path, count: int) -> list[Path]:
    """Grey images whose pixels are their numbers."""
    for number in range(count):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number:03}.png")
    return sorted(tmp_path.iterdir())


def opening(monkeypatch, before) -> None:
    """Call `before` with the number of each file that is opened."""
    open_picture = decode.open_picture

    def opened(file):
        before(int(file.stem))
        return open_picture(file)

    monkeypatch.setattr(decode, "open_picture", opened)


def test_files_are_read_at_the_same_time_and_every_image_is_in_its_place(tmp_path, monkeypatch):
    files, together = stored(tmp_path, 33), threading.Barrier(4)
    opening(monkeypatch, lambda number: number and together.wait(timeout=60))  # the first shows the shape, alone
    assert read_images(Source(files, 33)).pixels[:, 0, 0, 0].tolist() == list(range(33))


def test_the_first_broken_file_is_named_even_if_a_later_one_is_read_before_it(tmp_path, monkeypatch):
    files, later = stored(tmp_path, 9), threading.Event()
    for number in (5, 6):
        files[number].write_bytes(b"no picture")
    opening(monkeypatch, lambda number: later.wait(60) if number == 5 else number == 6 and later.set())
    with pytest.raises(UserError, match="number 5 cannot be read"):
        read_images(Source(files, 9))


def test_after_a_broken_file_the_rest_is_not_read(tmp_path, monkeypatch):
    files, read = stored(tmp_path, 99), []
    files[1].write_bytes(b"no picture")
    opening(monkeypatch, read.append)
    with pytest.raises(UserError, match="number 1 cannot be read"):
        read_images(Source(files, 99))
    assert len(read) < 20


def test_the_report_of_the_originals_is_in_the_order_of_the_images(tmp_path, monkeypatch):
    for number in range(12):
        Image.new("L" if number % 2 else "RGB", (8 + number, 8)).save(tmp_path / f"{number:03}.png")
    first = threading.Event()
    opening(monkeypatch, lambda number: first.wait(60) if number == 2 else number == 3 and first.set())
    originals = load_images(train_data_dir=str(tmp_path), resolution=4, center_crop=True, image_mode="L").originals
    assert list(originals.modes.items()) == [("RGB", 6), ("L", 6)]
    assert (originals.smallest, originals.largest) == ((8, 8), (19, 8))


def test_files_may_be_given_by_their_content_and_pictures_may_be_drawn_on_one_canvas(tmp_path):
    files = stored(tmp_path, 20)
    assert read_images(Source([file.read_bytes() for file in files], 20)).pixels[:, 0, 0, 0].tolist() == list(range(20))

    def redrawn(canvas):
        for number in range(20):
            canvas.paste(number, (0, 0, 8, 8)) if isinstance(canvas, Image.Image) else canvas.fill(number)
            yield canvas

    for canvas in (Image.new("L", (8, 8)), np.empty((8, 8), np.uint8)):
        assert read_images(Source(redrawn(canvas), 20)).pixels[:, 0, 0, 0].tolist() == list(range(20))


def test_a_bar_counts_the_images_on_the_first_process_alone(tmp_path, monkeypatch):
    bars = []

    def recorded(*args, shown, **options):
        bars.append((progress_bar(*args, **options, disable=False), shown, options["delay"]))
        return bars[-1][0]

    monkeypatch.setattr(decode, "progress_bar", recorded)
    files = stored(tmp_path, 20)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        read_images(Source(files, 20))
    assert [(bar.n, bar.total, shown) for bar, shown, _ in bars] == [(20, 20, True), (20, 20, False)]
    assert all(delay > 0 for *_, delay in bars), "small data show a bar"


def test_a_bar_is_hidden_by_the_environment_and_on_other_processes(capfd):
    assert os.environ["TQDM_DISABLE"] == "1"
    assert progress_bar(3, "image").disable
    assert progress_bar(3, "image", shown=False).disable
    shown = progress_bar(3, "image", disable=False)
    shown.update(3)
    shown.close()
    assert "3/3" in capfd.readouterr().err
