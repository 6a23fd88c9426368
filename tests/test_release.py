"""The gate of a release, and that the version has one home."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from diffusers_ict.version import __version__

ADDRESS = "https://example.org/someone/diffusers-ict"


@pytest.fixture
def check(tmp_path):
    """check(tag, address) on a repository whose changelog and address are fit to be released."""
    pytest.importorskip("tomllib", reason="a module of Python 3.11")
    (tmp_path / "src" / "diffusers_ict").mkdir(parents=True)
    shutil.copy(ROOT / "src" / "diffusers_ict" / "version.py", tmp_path / "src" / "diffusers_ict")
    project = (ROOT / "pyproject.toml").read_text().replace("[project.urls]", "[project.others]")
    (tmp_path / "pyproject.toml").write_text(f'{project}\n[project.urls]\nRepository = "{ADDRESS}"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__}, today\n")

    def run(tag: str = f"v{__version__}", address: str = ADDRESS) -> tuple[int, str]:
        command = [sys.executable, ROOT / ".ci" / "check_release.py", tag, address]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr

    return run


def test_a_release_is_what_its_tag_changelog_and_address_say(check, tmp_path):
    assert check() == (0, "")
    code, told = check(tag="v9.9.9")
    assert (code, told) == (1, f"the tag is v9.9.9, and src/diffusers_ict/version.py says {__version__}: tag "
                               f"v{__version__}.\n")  # fmt: skip
    assert check(address="https://example.org/fork")[0] == 1
    for heading in ("## Unreleased", f"## {__version__}, unreleased"):
        (tmp_path / "CHANGELOG.md").write_text(f"{heading}\n")
        code, told = check()
        assert code == 1
        assert f"CHANGELOG.md has no section ## {__version__} of a release" in told


def test_the_workflow_publishes_what_was_checked_without_a_secret():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    build, test, index = (workflow["jobs"][name] for name in ("build", "testpypi", "pypi"))
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert [re.search(r"check_release\.py|make dist|use_wheel", command)[0] for command in commands] == [
        "check_release.py", "make dist", "use_wheel"]  # fmt: skip
    assert (test["needs"], index["needs"]) == ("build", "testpypi")
    for name, job in (("testpypi", test), ("pypi", index)):
        assert job["environment"]["name"] == name
        assert job["permissions"] == {"id-token": "write"}, "nothing else, and only here"
        assert {step["uses"].partition("@")[0] for step in job["steps"]} == {
            "actions/download-artifact", "pypa/gh-action-pypi-publish"}, "no code of the repository"  # fmt: skip
    assert workflow["permissions"] == {}
    assert build["permissions"] == {"contents": "read"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_the_version_stands_in_one_place():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    ).stdout.split()
    if not files:
        pytest.skip("no checkout")
    own = re.compile(r"^\s*(?:__)?version(?:__)?\s*[:=]\s*[\"']?[0-9]", re.M)
    places = [
        name for name in files if re.search(r"\.(py|toml|cff|cfg)$", name) and own.search((ROOT / name).read_text())
    ]
    assert places == ["src/diffusers_ict/version.py"]
