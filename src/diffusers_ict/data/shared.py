"""One decoded copy of the images for all processes of a machine."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import psutil
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..errors import UserError
from .images import Images

POLL = 0.05  # seconds between two looks for the file


def load_shared(accelerator: Accelerator, folder: str | None, load: Callable[[str | None], Images]) -> Images:
    """The images that `load` reads, decoded by one process of each machine and mapped by the others.

    Without a folder for decoded images, several processes share a temporary file, which is removed as soon as all have
    mapped it. A kill while the images are decoded leaves a folder `diffusers-ict-*` among the temporary files.

    Args:
        folder: where decoded images are kept, or None.
        load: reads the images with the given folder for decoded images, as `load_images` does.

    Raises:
        UserError: whatever `load` raises, or the process that decodes is gone.
    """
    if accelerator.num_processes == 1:
        return load(folder)
    first = accelerator.is_local_main_process
    with tempfile.TemporaryDirectory(prefix="diffusers-ict-") if first else nullcontext() as own:
        everywhere = gather_object([(own, os.getpid())])
        own, process = everywhere[accelerator.process_index - accelerator.local_process_index]
        ready = Path(own, "ready")
        if not first:
            _wait(ready, process)
        images = load(folder or own)
        if first:
            ready.touch()
        accelerator.wait_for_everyone()
    return images


def _wait(ready: Path, process: int) -> None:
    """Wait for a file that a process makes, without a message between processes, which would time out."""
    while not ready.exists():
        if not psutil.pid_exists(process):
            raise UserError("the images were not read by the first process of this machine, whose message says why.")
        time.sleep(POLL)
