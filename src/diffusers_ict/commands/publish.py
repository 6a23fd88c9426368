"""Publish a finished run on the Hub, or finish publishing one.

    python train_scripts/publish.py my-model --hub_model_id someone/my-model

Makes one commit with pipeline, variants, samples, recipe and model card, and none where nothing has changed. Text that
people wrote into the card stays; --license replaces the licence that the card has. The card in the folder is renewed as
well. --space adds a Space of static files, someone/my-model-demo: a page in which the visitor's browser draws with the
model. The token is that of `hf auth login`, or HF_TOKEN. An upload that takes longer than --timeout is given up, and
the next one does not send again what has arrived.
Exit codes: 0 published, 2 not published.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..settings import ArgumentParser
from .program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Publish as the flags say; returns the exit code."""
    return run_program("publish.py", lambda: _publish(argv))


def _publish(argv: Sequence[str] | None) -> None:
    parser = ArgumentParser("publish.py", __doc__)
    parser.add_argument("output_dir", type=Path, help="output folder of train_ict.py or convert.py")
    parser.add_argument("--hub_model_id", required=True, help="user/name or organisation/name")
    parser.add_argument("--hub_private_repo", action="store_true", help="create the repository private")
    parser.add_argument("--license", help="of the weights, an identifier of the Hub such as cc0-1.0 [the card's]")
    parser.add_argument("--attempts", type=int, default=5, help="tries of each request [5]")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds until an upload is given up [1800]")
    parser.add_argument("--space", action="store_true", help="also make a Space: a page that draws in the browser")
    options = parser.parse_args(argv)
    for name, least in (("attempts", 1), ("timeout", 0)):
        if not getattr(options, name) >= least:
            raise UserError(f"`{name}` must be at least {least}, got {getattr(options, name)}.")
    from huggingface_hub.constants import ENDPOINT

    from ..hub.publish import publish, space_of
    from ..web.space import make_space

    address = publish(
        options.output_dir,
        options.hub_model_id,
        license=options.license,
        make_space=partial(make_space, repo_id=options.hub_model_id) if options.space else None,
        token=os.environ.get("HF_TOKEN"),
        private=options.hub_private_repo or None,
        attempts=options.attempts,
        timeout=options.timeout,
        progress=sys.stderr.isatty(),
    )
    print(f"Published at {address}")
    if options.space:
        print(f"Draw with it at {ENDPOINT}/spaces/{space_of(options.hub_model_id)}")
