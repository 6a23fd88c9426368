"""Decoded images in Arrow files: read into memory where they fit there, else row by row, and never mapped.

A mapped file that is cut off, or whose disk fails, ends the process by SIGBUS. A read fails with an exception.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..errors import UserError

MEMORY_SHARE = 0.5  # of the free memory of a machine, which the copies of all its processes may take together
CGROUPS = Path("/sys/fs/cgroup")  # of Linux, version 2


class StoredRows:
    """Images that stay in Arrow files, [n, C, H, W] of uint8: indexing by a slice or by int64 [B] reads them.

    The files stay open, so that they may be unlinked. Forked processes share them, and spawned ones open them again.

    Args:
        paths: of the files; shape: [C, H, W].
        parts: (number of the file, position in it, number of the first image) of consecutive images.
        count: images of all files.

    Raises:
        UserError: in indexing, where a file cannot be read any more.
    """

    dtype, device = torch.uint8, torch.device("cpu")

    def __init__(
        self, paths: Sequence[str], shape: tuple[int, ...], parts: Sequence[tuple[int, int, int]], count: int
    ) -> None:
        self.paths, self.shape, self.parts = paths, (count, *shape), parts
        self.files = [pa.OSFile(path) for path in paths]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, files=[pa.OSFile(path) for path in state["paths"]])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return prod(self.shape)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        every = range(len(self))
        numbers = every[rows] if isinstance(rows, slice) else [every[row] for row in rows.tolist()]
        pixels = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        for place, number in zip(pixels.flatten(1).numpy(), numbers):
            place[:] = self._read(number)
        return pixels

    def _read(self, number: int) -> np.ndarray:
        file, position, first = self.parts[bisect_right(self.parts, number, key=lambda part: part[2]) - 1]
        size = prod(self.shape[1:])
        try:
            content = self.files[file].read_at(size, position + (number - first) * size)
            if len(content) == size:
                return np.frombuffer(content, np.uint8)
            reason = "it is shorter than it was"
        except OSError as error:
            reason = error.strerror or str(error)
        raise UserError(
            f"the file of decoded images {self.paths[file]} cannot be read any more ({reason}): delete it and start "
            "again, a training run with `resume_from_checkpoint` latest; its checkpoints are kept."
        )


def read_rows(
    paths: Sequence[str], shape: tuple[int, ...], count: int, copies: int
) -> tuple[Tensor | StoredRows, Counter[tuple[int, int, str]]]:
    """The images of Arrow files, uint8 [count, C, H, W], and what the pictures were: (width, height, mode).

    Args:
        paths: files of rows of pixels, width, height and mode, one after another.
        shape: [C, H, W] of an image.
        copies: processes of this machine that read them.

    Raises:
        OSError, pyarrow.ArrowException: a file cannot be read, or holds other images.
    """
    size, parts, originals, first = prod(shape), [], Counter[tuple[int, int, str]](), 0
    fits = count * size * copies <= MEMORY_SHARE * free_memory()
    pixels = np.empty((count if fits else 0, size), np.uint8)
    for number, path in enumerate(paths):
        for position, batch in _batches(path):
            column = batch.column("pixels")
            if first + len(batch) > count or pc.unique(pc.binary_length(column)).to_pylist() != [size]:
                raise OSError("it holds other images")
            _, offsets, content = column.buffers()
            begin = int(np.frombuffer(offsets, np.int32)[column.offset])
            if fits:
                rows = np.frombuffer(content, np.uint8, len(batch) * size, begin)
                pixels[first : first + len(batch)] = rows.reshape(-1, size)
            parts.append((number, position + content.address + begin, first))
            originals.update(zip(*(batch.column(name).to_pylist() for name in ("width", "height", "mode"))))
            first += len(batch)
    if first != count:
        raise OSError("it holds other images")
    return torch.from_numpy(pixels).view(-1, *shape) if fits else StoredRows(paths, shape, parts, count), originals


def _batches(path: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of an Arrow stream, read one by one, and what leads from addresses in memory to positions in it."""
    with pa.OSFile(path) as file:
        messages = pa.ipc.MessageReader.open_stream(file)
        schema = pa.ipc.read_schema(messages.read_next_message())
        for message in messages:
            yield file.tell() - message.body.size - message.body.address, pa.ipc.read_record_batch(message, schema)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of the control groups (containers) it is in."""
    free = psutil.virtual_memory().available
    with suppress(OSError, StopIteration):  # another system, or version 1
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = CGROUPS / next(line for line in lines if line.startswith("0::"))[3:].lstrip("/")
        for group in (own, *own.parents):
            with suppress(OSError, ValueError):  # there is no file or no number where there is no limit
                limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                free = min(free, limit - used + int(held["active_file"]) + int(held["inactive_file"]))
    return free
