"""Training in a notebook: the images as a run sees them, and its newest samples below what it prints.

    from diffusers_ict.commands.notebook import show_images, train

    flags = "--config small_budget --train_data_dir my_images --resolution 32 --output_dir my-model"
    show_images(flags)
    train(flags + " --resume_from_checkpoint latest")

Both take the flags of `diffusers-ict train`, as one text or as words. They need IPython, which notebooks have.
"""

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..invocation import NOTEBOOK
from ..training.recipe import Recipe, parse

LINES = 40  # of the program that stay on the screen


class Cell:
    """What stands below a cell: the last lines that a program printed, and the newest picture of a folder.

    A line that ends with a carriage return gives way to the next one.

    Args:
        folder: of the samples, which need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        from IPython.display import display

        self.folder, self.lines, self.passing = folder, deque[str](maxlen=LINES), False
        self.text: Any = display({"text/plain": ""}, raw=True, display_id=True)
        self.picture: Any = None
        self.seen: tuple[str, int] | None = None

    def read(self, pieces: Iterable[str]) -> None:
        """Take pieces, each with the characters that end it, until there are no more."""
        for piece in pieces:
            if self.passing:
                self.lines.pop()
            self.lines.append(piece.rstrip("\r\n"))
            self.passing = piece.endswith("\r")

    def show(self) -> None:
        """Renew what is new."""
        from IPython.display import Image, display

        self.text.update({"text/plain": "\n".join(tuple(self.lines))}, raw=True)
        newest = max(self.folder.glob("step-*.png"), default=None)
        seen = None if newest is None else (newest.name, newest.stat().st_mtime_ns)
        if newest is None or seen == self.seen:
            return
        self.seen, picture = seen, Image(newest.read_bytes())
        if self.picture is None:
            self.picture = display(picture, display_id=True)
        else:
            self.picture.update(picture)


def show_images(flags: str | Sequence[str], count: int = 40) -> Any:
    """Random images as a run with these flags reads them: a column for each class, where it learns classes.

    Returns:
        a PIL image, which a notebook shows.

    Raises:
        UserError: the flags or the images cannot be used.
    """
    recipe = _recipe(flags)
    import torch

    from ..data.load import load_images
    from ..training.samples import array_sheet, rows_in_turn

    images = load_images(recipe, class_conditional=recipe.class_conditional)
    classes = images.num_classes or 0
    rows = rows_in_turn(images, torch.arange(count) % classes if classes else None, count, recipe.seed)
    x, _ = images.batch(rows.clamp(min=0), None, "cpu")
    x[rows < 0] = 1  # classes without images
    return array_sheet({"": x}, images, images.class_names or [*map(str, range(classes))])


def train(flags: str | Sequence[str], every: float = 2.0) -> None:
    """Run `diffusers-ict train` with these flags, and show below the cell what it prints and its newest samples.

    The run is a process of its own, so that its memory is free afterwards. Interrupting the cell asks it to stop with a
    checkpoint, and interrupting it again ends it at once. It also stops with a checkpoint when the notebook is gone.

    Args:
        every: seconds between two looks.

    Raises:
        UserError: the flags cannot be used, or the run ended with another exit code than 0.
    """
    cell = Cell(Path(_recipe(flags).output_dir, "samples"))
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", NOTEBOOK: str(os.getpid())}
    with subprocess.Popen(
        [sys.executable, "-m", "diffusers_ict", "train", *_words(flags)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # a notebook interrupts all processes of its session, and the run would get two signals
    ) as process:
        assert process.stdout is not None
        pieces = io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline="")
        reader = threading.Thread(target=cell.read, args=(pieces,), daemon=True)
        reader.start()
        while reader.is_alive():
            try:
                reader.join(every)
                cell.show()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    if process.returncode:
        raise UserError(f"the run ended with exit code {process.returncode}; the reason is its last line above.")


def _words(flags: str | Sequence[str]) -> list[str]:
    return shlex.split(flags) if isinstance(flags, str) else [*map(str, flags)]


def _recipe(flags: str | Sequence[str]) -> Recipe:
    return parse(_words(flags), "diffusers-ict train", None)
