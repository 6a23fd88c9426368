#!/usr/bin/env python
"""Publish a finished run on the Hub, or finish publishing one.

    python train_scripts/publish.py my-model --hub_model_id someone/my-model

One commit with pipeline, variants, samples, recipe and model card; nothing where nothing has changed. Text that people
wrote into the card stays. The token is that of `hf auth login`, or HF_TOKEN. Exit codes: 0 published, 2 not published.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusers_ict.errors import UserError
from diffusers_ict.training.arguments import ArgumentParser
from diffusers_ict.training.publish import publish

TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Publish as the flags say; returns the exit code."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="output folder of train_ict.py")
    parser.add_argument("--hub_model_id", required=True, help="user/name or organisation/name")
    parser.add_argument("--hub_private_repo", action="store_true", help="if it has to be created, create it private")
    parser.add_argument("--license", help="of the weights, an identifier of the Hub such as cc0-1.0")
    parser.add_argument("--attempts", type=int, default=5, help="tries of each request")
    try:
        options = parser.parse_args(argv)
        address = publish(
            options.output_dir,
            TEMPLATE,
            options.hub_model_id,
            license=options.license,
            token=os.environ.get("HF_TOKEN"),
            private=options.hub_private_repo or None,
            attempts=options.attempts,
        )
    except UserError as error:
        print(f"publish.py: {error}", file=sys.stderr)
        return 2
    print(f"Published at {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
