"""Files of decoded images that are cut off while a run trains on them: no signal, and the same end."""

import copy
import functools
import os
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from diffusers_ict.data import rows
from diffusers_ict.training.log import JSONLines

from .children import Lost, in_child
from .compare import check_same
from .workshop import LOSSES, STEPS, Fault, Workshop


@functools.cache
def _of_pictures(shop: Workshop) -> Workshop:
    """The same runs on pictures, which are decoded into a file."""
    own = copy.copy(shop)
    own.base = shop.base / "pictures"
    folder, cache = own.base / "images", own.base / "cache"
    folder.mkdir(parents=True)
    with np.load(shop.data[1]) as arrays:
        for number, pixels in enumerate(arrays["images"]):
            Image.fromarray(pixels[..., 0]).save(folder / f"{number:02}.png")
    own.data = ["--train_data_dir", str(folder), "--image_cache_dir", str(cache)]
    own.flags = [*own.data, *shop.flags[len(shop.data) :]]
    return own


def cut(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Cut the file after a random step: in memory the run goes on, on demand it ends with a sentence; then go on."""
    shop, loss, at = _of_pictures(shop), list(LOSSES)[number // 2 % len(LOSSES)], random.randrange(2, STEPS - 3)
    whole, in_memory, left = shop.whole(loss), number % 2 == 1, random.randrange(200)
    (file,) = (shop.base / "cache").glob("images-*.arrow")

    def body() -> int:
        write = JSONLines.write

        def writing(self: JSONLines, entry: dict) -> None:
            write(self, entry)
            if entry["step"] == at:
                os.truncate(file, left)

        JSONLines.write = writing  # type: ignore[method-assign]
        if not in_memory:
            rows.MEMORY_SHARE = 0
        return shop.train(loss, place / "out")

    ended = in_child(body, place)
    told = f"the file of decoded images {file} cannot be read any more"
    if in_memory:
        ended.check(0)
    elif told not in ended.check(2).output.splitlines()[-1]:  # before it, samples may have warned of the same
        raise Lost(f"another sentence: {ended.output[-2000:]}")
    shop.check_between(place)
    shop.finish(loss, place)
    check_same(whole.folder, place / "out")
    return 1


FAULTS = [Fault("a file of decoded images that is cut off", 12, cut)]
