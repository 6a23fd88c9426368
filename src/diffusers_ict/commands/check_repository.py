"""Examine a consistency repository: weights, time embedding, images, constants, second sigma, sampling, model card.

    python train_scripts/check_repository.py my-model            # a folder, or the id of a repository on the Hub

Prints `ok`, `advice` (works, but is unusual or missing) or `WRONG` (breaks sampling) for each, and the command that
mends it. Exit codes: 0 nothing breaks sampling, 1 something does, 2 not a consistency repository.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import ArgumentParser
from .program import run_program

if TYPE_CHECKING:
    from ..hub.check_repository import Finding

WORDS = {"ok": "ok    ", "advice": "advice", "error": "WRONG "}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each thing examined, and for some a command that mends it; returns the exit code."""
    return run_program("check_repository.py", lambda: _check(argv))


def _check(argv: Sequence[str] | None) -> int:
    parser = ArgumentParser("check_repository.py", __doc__)
    parser.add_argument("repository", help="folder, or id on the Hub")
    options = parser.parse_args(argv)
    from ..hub.check_repository import Severity, check_repository, is_publishable

    findings = check_repository(options.repository)
    publishable = any(finding.remedy for finding in findings) and is_publishable(options.repository)
    for finding in findings:
        print(f"{WORDS[finding.severity.value]} {finding.topic}: {finding.text}")
        if finding.remedy is not None:
            print(f"       {command(finding, options.repository, publishable)}")
    return 1 if any(finding.severity is Severity.ERROR for finding in findings) else 0


def command(finding: "Finding", repository: str, publishable: bool) -> str:
    """The command that mends a finding; words in capitals are for the user to fill in.

    Args:
        publishable: the repository is a run or a conversion; any other becomes a conversion.
    """
    from ..hub.check_repository import Remedy

    local = Path(repository).is_dir()
    model = repository if local else repository.split("/")[-1]
    license = " --license LICENCE" if finding.remedy is Remedy.LICENSE else ""
    if finding.remedy is Remedy.LEVELS:
        words = f"python train_scripts/evaluate.py {shlex.quote(model)} --tune_sigmas 2 --train_data_dir IMAGES"
    elif finding.remedy is Remedy.SCHEDULER:
        words = f"python -c {shlex.quote(_save_scheduler(model, finding.settings))}"
    elif publishable:
        name = "USER/NAME" if local else repository
        words = f"python train_scripts/publish.py {shlex.quote(model)} --hub_model_id {name}{license}"
    else:
        return f"python train_scripts/convert.py {shlex.quote(repository)} NEW_FOLDER{license}"
    return words if local else f"hf download {repository} --local-dir {model} && {words}"


def _save_scheduler(model: str, settings: dict[str, float]) -> str:
    """Code that saves a folder's scheduler again in its stock form, with other settings."""
    given = "".join(f", {name}={value}" for name, value in settings.items())
    load = f"ICTScheduler.from_pretrained({model!r}, subfolder='scheduler'{given})"
    target = f"{model}/scheduler"
    return f"from diffusers_ict import ICTScheduler; {load}.to_stock().save_pretrained({target!r})"
