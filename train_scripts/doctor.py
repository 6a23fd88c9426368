#!/usr/bin/env python
"""Examine a consistency repository: weights, time embedding, images, boundary, second sigma, sampling, model card.

    python train_scripts/doctor.py my-model            # a folder, or the id of a repository on the Hub

Exit codes: 0 nothing to mend, 1 something is wrong, 2 not a consistency repository.
"""

import sys
from collections.abc import Sequence

from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.doctor import examine
from diffusers_ict.training.arguments import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each thing examined; returns the exit code."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", help="folder, or id on the Hub")
    try:
        options = parser.parse_args(argv)
        findings = examine(options.repository)
    except UserError as error:
        print(f"doctor.py: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(f"{'ok   ' if finding.good else 'WRONG'} {finding.topic}: {finding.text}")
    return 0 if all(finding.good for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
