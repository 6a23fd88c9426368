"""Processes that convert stored pictures: threads gain nothing on tiny ones, most of whose time passes in Python.

A worker is a program of its own: neither a copy of the running one, which may have threads, nor that one's main file
run once more, as `multiprocessing` has it. It reads a line of JSON, the form of the pictures, and then chunks: a line
with a number and the length or the path of each file, and the files that have a length. It answers a chunk with a line,
the number and what the pictures are, and with their pixels. Where it cannot convert one, it says so in an empty list,
and the caller converts the chunk and words the error.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import LifoQueue
from typing import IO

import numpy as np

from .picture_file import open_picture
from .picture_format import Converted, PictureFormat

EACH = 500  # pictures that are worth the half second in which a worker starts
LARGE = 1 << 20  # bytes of a chunk whose decoding, without Python's lock, takes most of the time: threads are as good
READY = b"a worker of diffusers-ict is ready\n"
# An empty path would stand for the working directory, whose files might have the names of modules.
PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from diffusers_ict.data.workers import work; work()"


class Worker:
    """A process that converts pictures.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, form: PictureFormat) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the caller, who ends the workers
        )
        self.numbers = count()
        self.form = form

    def convert(self, files: Sequence[bytes | Path]) -> list[Converted]:
        """What `PictureFormat.apply` makes of files; nothing where one of them cannot be converted.

        Raises:
            OSError, ValueError, TypeError: the process has died, or says what it should not.
        """
        given, taken = _pipe(self.process.stdin), _pipe(self.process.stdout)
        number = next(self.numbers)
        if number == 0:
            given.write(_line(dataclasses.asdict(self.form)))
            given.flush()
            while (said := taken.readline()) != READY:  # some installations greet whoever starts Python
                if not said:
                    raise OSError("a worker did not start")
        given.write(_line([number, [len(file) if isinstance(file, bytes) else str(file.absolute()) for file in files]]))
        given.writelines(file for file in files if isinstance(file, bytes))
        given.flush()
        answered, described = json.loads(taken.readline())
        if answered != number or len(described) not in (0, len(files)):
            raise OSError("a worker answers another question")
        return list(_received(taken, described))

    def end(self) -> None:
        """End the process, which holds nothing that could be lost."""
        self.process.kill()
        self.process.communicate()


class Workers:
    """Workers that threads borrow, each started when it is first needed; they end with the context.

    Args:
        form: of the pictures.
        pictures: how many there will be.
        threads: that borrow workers; a single one converts by itself.
    """

    def __init__(self, form: PictureFormat, pictures: int, threads: int) -> None:
        self.form = form
        self._usable = bool(sys.executable) and not getattr(sys, "frozen", False) and threads > 1
        self._started: list[Worker] = []
        self._idle: LifoQueue[Worker | None] = LifoQueue()  # None: one that is still to be started
        for _ in range(min(threads, pictures // EACH)):
            self._idle.put(None)
        self._usable = self._usable and pictures >= 2 * EACH

    def convert(self, items: Sequence[object]) -> list[Converted] | None:
        """What `PictureFormat.apply` makes of small files; None for others, and where one cannot be converted."""
        files = [item for item in items if isinstance(item, bytes | Path)]
        if not self._usable or len(files) < len(items) or _size(files) > LARGE:
            return None
        worker = self._idle.get()
        try:
            if worker is None:
                worker = Worker(self.form)
                self._started.append(worker)
            return worker.convert(files) or None
        except (OSError, ValueError, TypeError):
            self._usable = False  # the threads go on alone
            return None
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._started:
            worker.end()


def _size(files: Sequence[bytes | Path]) -> int:
    try:
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files)
    except OSError:  # the caller will say so
        return LARGE + 1


def _received(taken: IO[bytes], described: list) -> Iterator[Converted]:
    for shape, (width, height), mode in described:
        pixels = np.frombuffer(taken.read(int(np.prod(shape))), np.uint8)
        yield Converted(pixels.reshape(shape), (width, height), mode)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def work() -> None:
    """The program of a worker: it ends when nothing more comes."""
    given, taken = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints from here on does not speak for the worker
    form = PictureFormat(**json.loads(given.readline()))
    with suppress(BrokenPipeError):  # the caller is gone
        taken.write(READY)
        taken.flush()
        for line in given:
            number, entries = json.loads(line)
            files = [given.read(entry) if isinstance(entry, int) else Path(entry) for entry in entries]
            try:
                pictures = [_convert(file, form) for file in files]
            except Exception:  # whatever it is, the caller meets it again, and words it
                pictures = []
            described = [[picture.pixels.shape, picture.size, picture.mode] for picture in pictures]
            taken.write(_line([number, described]))
            taken.writelines(picture.pixels.tobytes() for picture in pictures)
            taken.flush()


def _convert(file: bytes | Path, form: PictureFormat) -> Converted:
    with open_picture(file) as picture:
        return form.apply(picture, lambda: "")
