"""Examine a consistency repository: weights, time embedding, images, constants, second sigma, sampling, model card.

    diffusers-ict check my-model            # a folder, or the id of a repository on the Hub

Prints `ok`, `advice` (works, but is unusual or missing) or `WRONG` (breaks sampling) for each topic, and the command
that mends it. Exit codes: 0 nothing breaks sampling, 1 something does, 2 not a consistency repository.
"""

import argparse

from ..names import visible
from .program import argument, as_flags, program


@program("check", __doc__, argument("repository", help="folder, or id on the Hub"))
def main(options: argparse.Namespace) -> int:
    """Print a line for each thing examined, and for some a command that mends it."""
    from ..hub.check_repository import Severity, check_repository

    findings = check_repository(options.repository)
    for finding in findings:
        print(f"{finding.severity.value:6} {finding.topic}: {visible(finding.text)}")
        if finding.remedy is not None:
            print(f"       {as_flags(finding.remedy)}")
    return 1 if any(finding.severity is Severity.ERROR for finding in findings) else 0
