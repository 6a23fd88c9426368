"""Examine a consistency repository: weights, time embedding, images, constants, second sigma, sampling, model card.

    python train_scripts/check_repository.py my-model            # a folder, or the id of a repository on the Hub

Exit codes: 0 nothing to mend, 1 something is wrong, 2 not a consistency repository.
"""

from collections.abc import Sequence

from ..settings import ArgumentParser
from .program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each thing examined; returns the exit code."""
    return run_program("check_repository.py", lambda: _check(argv))


def _check(argv: Sequence[str] | None) -> int:
    parser = ArgumentParser("check_repository.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", help="folder, or id on the Hub")
    options = parser.parse_args(argv)
    from ..hub.check_repository import check_repository

    findings = check_repository(options.repository)
    for finding in findings:
        print(f"{'ok   ' if finding.good else 'WRONG'} {finding.topic}: {finding.text}")
    return 0 if all(finding.good for finding in findings) else 1
