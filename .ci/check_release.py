#!/usr/bin/env python3
"""Refuse a release that is not what its tag says: `.ci/check_release.py TAG ADDRESS`, from the root of the repository.

TAG must be the version with a v before it, the changelog must have a section of that version, and [project.urls] of
pyproject.toml must name ADDRESS as `Repository`: model cards and the page of the index say where the package is by it.
Python 3.11 or newer. Exit codes: 0 fit to be released, 1 not, and why.
"""

import re
import sys
from pathlib import Path

import tomllib


def main(tag: str, address: str) -> int:
    """Print what is wrong."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', Path("src/diffusers_ict/version.py").read_text(), re.M)
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    headings = re.findall(rf"^## {re.escape(version)}\b.*$", Path("CHANGELOG.md").read_text(), re.M)
    stated = project.get("urls", {}).get("Repository")
    wrong = []
    if tag != f"v{version}":
        wrong.append(f"the tag is {tag}, and src/diffusers_ict/version.py says {version}: tag v{version}.")
    if not headings or "unreleased" in headings[0].lower():
        wrong.append(f"CHANGELOG.md has no section ## {version} of a release: name its section so.")
    if stated != address:
        wrong.append(f'pyproject.toml must have [project.urls] Repository = "{address}", and has {stated}.')
    print(*wrong, sep="\n", end="\n" * bool(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
