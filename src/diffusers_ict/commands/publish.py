"""Publish a finished run on the Hub, or finish publishing one.

    diffusers-ict publish my-model --hub_model_id someone/my-model

Makes one commit with pipeline, variants, samples, recipe and model card, and none where nothing has changed. Text that
people wrote into the card stays; --license replaces the licence that the card has. The card in the folder is renewed as
well. --space adds a Space of static files, someone/my-model-demo: a page in which the visitor's browser draws with the
model. The token is that of `hf auth login`, or HF_TOKEN. An upload that takes longer than --timeout is given up, and
the next one does not send again what has arrived.
Exit codes: 0 published, 2 not published.
"""

import argparse
import os
import shutil
import sys
import threading
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..hub.metadata import check_license
from ..invocation import message_name, typed
from .program import argument, program


@program(
    "publish",
    __doc__,
    argument("output_dir", type=Path, help="output folder of `diffusers-ict train` or `convert`"),
    argument("--hub_model_id", required=True, help="user/name or organisation/name"),
    argument("--hub_private_repo", action="store_true", help="create the repository private"),
    argument("--license", help="of the weights, an identifier of the Hub such as cc0-1.0 [the card's]"),
    argument("--timeout", type=float, default=1800.0, help="seconds until an upload is given up [1800]"),
    argument("--space", action="store_true", help="also make a Space: a page that draws in the browser"),
    argument("--remove_output_dir", action="store_true", help=argparse.SUPPRESS),  # for copies that a run publishes
)
def main(options: argparse.Namespace) -> None:
    """Publish as the flags say."""
    if not 0 <= options.timeout <= threading.TIMEOUT_MAX:
        raise UserError(f"`timeout` must be at least 0 and finite, got {options.timeout}.")
    check_license(options.license)
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils.logging import set_verbosity_error

    from ..hub.publish import publish, space_of
    from ..web.build import make_space

    set_verbosity_error()  # the client tells of every repeated request
    repo_id = options.hub_model_id
    timer = threading.Timer(options.timeout, _give_up, [options])
    timer.daemon = True
    timer.start()
    try:
        address = publish(
            options.output_dir,
            repo_id,
            license=options.license,
            private=options.hub_private_repo or None,
            make_space=partial(make_space, repo_id=repo_id) if options.space else None,
        )
    finally:
        timer.cancel()
        _remove_copy(options)
    print(f"Published at {address}")
    if options.space:
        print(f"Draw with it at {ENDPOINT}/spaces/{space_of(repo_id)}")


def _give_up(options: argparse.Namespace) -> None:
    """End the program: what hangs in threads or native code of the client has no other end."""
    print(
        f"{message_name(typed('publish'))}: {options.hub_model_id} was not published: the upload took longer than "
        f"{options.timeout:g} seconds; "
        "publish again with a larger --timeout, and files that have arrived are not sent again.",
        file=sys.stderr,
        flush=True,
    )
    _remove_copy(options)
    os._exit(2)


def _remove_copy(options: argparse.Namespace) -> None:
    if options.remove_output_dir:
        shutil.rmtree(options.output_dir, ignore_errors=True)
