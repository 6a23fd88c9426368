"""Processes that convert stored pictures: threads gain nothing on tiny ones, most of whose time passes in Python.

A worker is a program of its own: neither a copy of the running one, which may have threads, nor that one's main file
run once more, as `multiprocessing` has it. It reads a line of JSON, the form of the pictures, and then chunks: a line
with the length or the path of each file, and the files that have a length. It answers a chunk with a line about its
pictures, and their pixels; or with an empty list, and the caller converts the chunk and words the error.
"""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np
from PIL import Image

from .picture_file import open_picture
from .picture_format import Converted, PictureFormat

MANY = 2000  # pictures that are worth the half second in which a worker starts
PROGRAM = "from diffusers_ict.data.workers import work; work()"


class Workers:
    """Worker processes that threads borrow; they end with the context.

    Args:
        form: of the pictures.
        number: of processes; none means that `convert` always returns None.
    """

    def __init__(self, form: PictureFormat, number: int) -> None:
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        usable = bool(sys.executable) and not getattr(sys, "frozen", False)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        for _ in range(number if usable else 0):
            worker = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the caller, who ends the workers
            )
            _pipe(worker.stdin).write(_line(dataclasses.asdict(form)))
            self._all.append(worker)
            self._idle.put(worker)

    def convert(self, items: Sequence[object]) -> list[Converted] | None:
        """What `PictureFormat.apply` makes of files; None where some item is no file or cannot be converted."""
        files = [item for item in items if isinstance(item, bytes | Path)]
        if not self._all or len(files) < len(items):
            return None
        worker = self._idle.get()
        try:
            return _ask(worker, files) or None
        except (OSError, ValueError):  # it has died
            return None
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._all:
            worker.kill()  # it holds nothing that could be lost
            worker.communicate()


def _ask(worker: "subprocess.Popen[bytes]", files: Sequence[bytes | Path]) -> list[Converted]:
    given, taken = _pipe(worker.stdin), _pipe(worker.stdout)
    given.write(_line([len(file) if isinstance(file, bytes) else str(file.absolute()) for file in files]))
    given.writelines(file for file in files if isinstance(file, bytes))
    given.flush()
    described = json.loads(taken.readline())
    return [
        Converted(np.frombuffer(taken.read(int(np.prod(shape))), np.uint8).reshape(shape), (width, height), mode)
        for shape, (width, height), mode in described
    ]


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def work() -> None:
    """The program of a worker: it ends when nothing more comes."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    given, taken = sys.stdin.buffer, sys.stdout.buffer
    form = PictureFormat(**json.loads(given.readline()))
    for line in given:
        files = [given.read(entry) if isinstance(entry, int) else Path(entry) for entry in json.loads(line)]
        try:
            pictures = [_convert(file, form) for file in files]
        except Exception:  # whatever it is, the caller meets it again, and words it
            pictures = []
        taken.write(_line([[picture.pixels.shape, picture.size, picture.mode] for picture in pictures]))
        taken.writelines(picture.pixels.tobytes() for picture in pictures)
        taken.flush()


def _convert(file: bytes | Path, form: PictureFormat) -> Converted:
    with open_picture(file) as picture:
        return form.apply(picture, lambda: "")
