"""What the README and the examples show runs as it stands."""

import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, make_unet
from PIL import Image

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import edit, sample
from diffusers_ict.commands.main import main as program
from diffusers_ict.hub.card import renewed_card
from diffusers_ict.loading import load_consistency

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_readme_snippets_run(number, tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", README, re.S)[number]
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    with Image.open(tmp_path / "sample.png") as sample:
        assert sample.size[0] >= 8


COMMANDS = re.findall(r"diffusers-ict (?!is |trains )([a-z-]+)((?:[^\n`]|\\\n)*)", README)


@pytest.mark.parametrize("name", sorted({name for name, _ in COMMANDS}))
def test_flags_in_the_readme_exist(name, capsys):
    """Wherever the README names a command, it is one, and so are its flags."""
    with pytest.raises(SystemExit):
        program([name, "--help"])
    flags = {flag for command, words in COMMANDS if command == name for flag in re.findall(r"--\w+", words)}
    assert flags <= set(re.findall(r"--\w+", capsys.readouterr().out))


def test_figures_in_tables_are_those_of_the_result_files():
    """Every table of the README and of the page of results stands word for word in a committed result."""
    results = "\n".join(p.read_text() for p in (ROOT / "benchmarks" / "results").glob("*.md"))
    tables = README + (ROOT / "docs" / "results.md").read_text("utf-8")
    rows = [line for line in tables.splitlines() if re.match(r"\| .*\d", line)]
    assert rows
    for row in rows:
        assert row in results, row


def test_committed_cards_say_what_their_files_say():
    """Files that come later, such as labels.json, are in them."""
    for folder in (ROOT / "model_cards").iterdir():
        assert (folder / "README.md").read_text("utf-8") == renewed_card(folder), folder.name


def test_the_committed_model_draws_a_bag_by_its_name():
    pipeline = load_consistency(str(ROOT / "model_cards" / "fashion32"))
    named, numbered = (
        pipeline(2, class_labels=label, generator=torch.Generator().manual_seed(0), output_type="np").images
        for label in ("Bag", 8)
    )
    assert np.array_equal(named, numbered)
    assert len(pipeline.id2label) == pipeline.unet.config.num_class_embeds


def test_the_ledger_is_what_the_result_files_say():
    """`python benchmarks/ledger.py` writes it; every link in it leads to a file."""
    import ledger

    written = (ROOT / "benchmarks" / "LEDGER.md").read_text()
    assert written == ledger.render()
    links = re.findall(r"\]\(([^)]+)\)", written)
    assert links
    assert all((ROOT / "benchmarks" / link).is_file() for link in links)


def test_samples_are_drawn_from_a_saved_model(tmp_path, capsys):
    ConsistencyPipeline(make_unet(num_class_embeds=3), ICTScheduler()).save_pretrained(tmp_path / "model")
    own = [str(tmp_path / "model"), "--output", str(tmp_path / "out" / "samples.png"), "--num_samples", "20"]
    assert sample.main(own) == 0
    assert "20 samples with 2 steps in" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "samples.png") as picture:
        assert picture.width == 15 * 64 + 14 * 2, "five columns of each of three classes"
        assert picture.height > 2 * 64 + 2, "their names above two rows"
    assert sample.main([*own, "--num_inference_steps", "0"]) == 2
    assert "--num_inference_steps must be at least 1, got 0" in capsys.readouterr().err


def test_pictures_are_edited_into_a_strip(tmp_path, capsys):
    unet = make_unet(num_class_embeds=3, in_channels=3, out_channels=3)
    ConsistencyPipeline(unet, ICTScheduler()).save_pretrained(tmp_path / "model")
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    Image.new("RGB", (9, 9), "red").save(pictures[0])
    Image.new("L", (8, 8), 200).save(pictures[1])
    own = [str(tmp_path / "model"), "--images", *pictures, "--num_inference_steps", "2"]
    own += ["--output", str(tmp_path / "out" / "edits.png")]
    assert edit.main([*own, "--class_labels", "0", "2"]) == 0
    assert "2 pictures, edited in 2 steps" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "edits.png") as strip:
        assert strip.height == 9 * 64 + 8 * 8  # before, and two blocks for each of four edits
        grey = np.asarray(strip)[7 * 72 + 8 : 7 * 72 + 56, -130:-74].reshape(-1, 3)
    assert (grey == grey[:, :1]).all(), "what is known of colours is a grey"
    assert abs(int(grey[0, 0]) - 0.2989 * 255) < 1, "that of a red picture"
    assert edit.main([*own, "--class_labels", "7"]) == 2
    assert "diffusers-ict edit: class_labels must lie within 0 and 2" in capsys.readouterr().err


def test_minimal_example_trains_and_samples(tmp_path, monkeypatch, capsys):
    words = ["train_minimal.py", "--steps", "16", "--batch_size", "8", "--output_dir", "m"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "train_minimal.py"), run_name="__main__")
    assert end.value.code == 0
    assert "N = 11" in capsys.readouterr().out
    with Image.open(tmp_path / "m" / "zero.png") as zero:
        assert zero.size == (64, 64)


@pytest.mark.slow
def test_demo_trains_samples_and_measures(tmp_path):
    flags = "--output_dir runs/d -- --max_train_steps 16 --train_batch_size 8".split()
    command = [sys.executable, str(ROOT / "examples" / "demo_digits.py"), *flags]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600).stdout
    report = json.loads((tmp_path / "runs" / "d" / "demo.json").read_text())
    assert report["classifier_held_out"] >= 0.97
    assert 0 <= report["recognised_2_all"] <= 1
    assert report["frechet_1"] > 3 * report["frechet_halves"], "sixteen steps cannot do this well"
    card = (tmp_path / "runs" / "d" / "README.md").read_text()
    assert f"| 1 | published | {report['frechet_1']:.4g} | " in card
    assert "python -m diffusers_ict evaluate runs/d --dataset_name" in card
    assert "recognised by a classifier" in out
    with Image.open(tmp_path / "runs" / "d" / "digits.png") as picture:
        assert picture.width > 300
