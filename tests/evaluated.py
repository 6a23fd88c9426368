"""Evaluations in this process, whose every file is in a folder of the test."""

import json
from pathlib import Path

from diffusers_ict.commands import evaluate

SETTINGS = ["--extractor", "pixels", "--metrics", "fid", "kid", "pr", "--num_samples", "150", "--batch_size", "40"]


def arguments(model: Path, base: Path, *more) -> list[str]:
    """Flags of an evaluation whose every file is under `base`."""
    data = model.parent / "data.npz"
    return [str(a) for a in [model, "--dataset_name", data, *SETTINGS, "--cache_dir", base / "cache", *more]]


def figures(model: Path, base: Path, *more) -> list[dict]:
    assert evaluate.main(arguments(model, base, "--output_dir", base / "out", *more)) == 0
    return json.loads((base / "out" / "evaluation.json").read_text())["rows"]


def refused(capsys, message, *words):
    assert evaluate.main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1, err
