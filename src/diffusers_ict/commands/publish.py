"""Publish a finished run on the Hub, or finish publishing one.

    diffusers-ict publish my-model --hub_model_id someone/my-model

Makes one commit with pipeline, variants, samples, recipe and model card, and prints which files it added and changed.
If nothing has changed, it makes none. Other files of the repository stay, and so do sections of the card that you have
edited; --license replaces the licence. The card in the folder is updated as well. --space adds a Space of static files,
someone/my-model-demo: a page in which the visitor's browser draws with the model. --training_checkpoints also sends
checkpoints, from which `diffusers-ict train --resume_from_checkpoint hub` continues. --modular adds two blocks of
Modular Diffusers, which draw and inpaint with diffusers alone; later uploads keep them. The token is that of
`hf auth login`, or HF_TOKEN. An upload ends after --timeout seconds; publish again to send the files that are missing.
Exit codes: 0 published, 2 not published.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import UserError
from ..hub.metadata import check_license
from ..invocation import message_name, typed
from ..names import visible
from .demo import ENDS
from .program import argument, program

if TYPE_CHECKING:
    from ..hub.publish import Upload

NAMED = 6  # files of a change that are named one by one


@program(
    "publish",
    __doc__,
    argument("output_dir", type=Path, help="output folder of `diffusers-ict train` or `convert`"),
    argument("--hub_model_id", required=True, help="user/name or organisation/name"),
    argument("--hub_private_repo", action="store_true", help="create the repository private"),
    argument("--license", help="licence of the weights, an identifier of the Hub such as cc0-1.0 [the card's]"),
    argument("--timeout", type=float, default=1800.0, help="seconds until an upload is given up [1800]"),
    argument(
        "--training_checkpoints",
        choices=("newest", "all"),
        help="also upload training checkpoints, from which a run can continue: the newest, or each by its own name",
    ),
    argument("--supersede", action="store_true", help="also replace newer checkpoints of the same run on the Hub"),
    argument("--modular", action="store_true", help="also write blocks of Modular Diffusers, to draw and to inpaint"),
    argument("--space", action="store_true", help="also make a Space: a page that draws in the browser"),
    argument("--remove_output_dir", action="store_true", help=argparse.SUPPRESS),  # for copies that a run publishes
)
def main(options: argparse.Namespace) -> None:
    """Publish as the flags say."""
    if not 0 <= options.timeout <= threading.TIMEOUT_MAX:
        raise UserError(f"`timeout` must be at least 0 and finite, got {options.timeout}.")
    check_license(options.license)
    from huggingface_hub.utils.logging import set_verbosity_error

    from ..hub.checkpoint_upload import CheckpointUpload
    from ..hub.modular import write_blocks
    from ..hub.publish import publish
    from ..web.build import make_space

    set_verbosity_error()  # the client tells of every repeated request
    if options.modular:
        write_blocks(options.output_dir)
    which = options.training_checkpoints
    with _scratch(options) as scratch:

        def make_page(model: Path, license: str | None, folder: Path) -> Path:
            make_space(model, folder, license, repo_id=options.hub_model_id)
            return folder

        model, *spaces = publish(
            options.output_dir,
            options.hub_model_id,
            license=options.license,
            private=options.hub_private_repo or None,
            checkpoints=None if which is None else CheckpointUpload(which, options.supersede),
            make_space=None if scratch is None else partial(make_page, folder=scratch),
        )

    _tell("Published at", model)
    for space in spaces:
        _tell("Draw with it at", space)


def _tell(begin: str, upload: "Upload") -> None:
    """Print where a repository is, and what changed there."""
    print(begin, upload.address)
    parts = {"added": upload.added, "changed": upload.changed}
    what = " and ".join(f"{_counted(names)} {change}" for change, names in parts.items() if names)
    print(f"  {what}: {upload.commit}" if what else "  nothing has changed")


def _counted(names: list[str]) -> str:
    """How many files these are, and what the first of them are called."""
    more = ["..."] * (len(names) > NAMED)
    listed = ", ".join([*map(visible, names[:NAMED]), *more])
    return f"{len(names)} file{'s' * (len(names) > 1)} ({listed})"


@contextmanager
def _scratch(options: argparse.Namespace) -> Iterator[Path | None]:
    """A folder for the page, if one is published. However the program ends, it goes, as does a copy of a run's folder.

    After the time that is given, and by signals, the program ends at once: what hangs in threads or native code of the
    client has no other end.
    """
    scratch = Path(tempfile.mkdtemp(prefix="publish-page-")) if options.space else None
    temporary = [*([] if scratch is None else [scratch]), *[options.output_dir] * options.remove_output_dir]

    def clean() -> None:
        for folder in temporary:
            shutil.rmtree(folder, ignore_errors=True)

    def give_up() -> None:
        print(
            f"{message_name(typed('publish'))}: {options.hub_model_id} was not published: the upload took longer than "
            f"{options.timeout:g} seconds; "
            "publish again with a larger --timeout, and files that have arrived are not sent again.",
            file=sys.stderr,
            flush=True,
        )
        clean()
        os._exit(2)

    def end(number: int, frame: FrameType | None) -> None:
        clean()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    heeded = [number for number in ENDS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    timer = threading.Timer(options.timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield scratch
    finally:
        timer.cancel()
        clean()
        for number, handler in before.items():
            signal.signal(number, handler)
