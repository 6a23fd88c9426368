"""Programs know the run whose folder they are given: its data flags are theirs, and what it says next can be pasted."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_npz
from PIL import Image

from diffusers_ict.commands import edit, evaluate, inspect_model
from diffusers_ict.commands.main import main as program
from diffusers_ict.commands.train import next_commands
from diffusers_ict.training.recipe import Recipe

QUICK = ["--extractor", "pixels", "--metrics", "kid", "--num_samples", "8", "--steps", "1", "--variants", "published"]


@pytest.fixture
def beside(run, digits, monkeypatch, tmp_path):
    """The folder of a run, in whose parent folder we are, and the data, too."""
    data = yaml.safe_load((run / "recipe.yaml").read_text())["dataset_name"]
    (tmp_path / data).symlink_to(digits.parent / data)
    monkeypatch.chdir(tmp_path)
    return run


def evaluated(*words) -> int:
    return evaluate.main([*map(str, words), *QUICK, "--cache_dir", "cache", "--output_dir", "out"])


def change_recipe(run, **changes) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))


def test_an_evaluation_takes_the_data_flags_of_the_run_and_says_so(beside, capsys):
    data = yaml.safe_load((beside / "recipe.yaml").read_text())["dataset_name"]
    assert evaluated(beside.name, "--dataset_name", data) == 0
    by_hand = json.loads(Path("out/evaluation.json").read_text())["rows"]
    capsys.readouterr()
    assert evaluated(beside.name) == 0
    assert capsys.readouterr().out.startswith(f"As in the run of {beside.name}: --dataset_name {data}")
    assert json.loads(Path("out/evaluation.json").read_text())["rows"] == by_hand


def test_flags_win_over_the_run_and_other_data_replace_its_columns(beside, capsys):
    change_recipe(beside, label_column="nowhere", image_mode="RGB")
    write_npz(beside.parent / "own.npz")
    assert evaluated(beside.name, "--dataset_name", "own.npz") == 2
    assert "and are 8x8 of 3" in capsys.readouterr().err, "the form of pictures stays that of the run"
    assert evaluated(beside.name, "--dataset_name", "own.npz", "--image_mode", "L") == 0


def test_a_recipe_does_not_choose_where_this_machine_writes(beside):
    change_recipe(beside, image_cache_dir="elsewhere")
    assert evaluated(beside.name) == 0
    assert not (beside.parent / "elsewhere").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_name": "gone.npz"},
            "the images of this run, gone.npz, are not where you are: give --train",
        ),
        ({"dataset_name": None, "train_data_dir": "gone"}, "the images of this run, gone, are not where you are"),
        ({"resolution": "many"}, "--resolution: invalid int value: 'many'"),
        ({"resolution": 0}, "--resolution must be at least 1, got 0"),
    ],
)
def test_a_run_without_its_data_gets_a_sentence(beside, capsys, changes, message):
    change_recipe(beside, **changes)
    for main in (evaluate.main, inspect_model.main):
        assert main([beside.name]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_an_inspection_needs_the_folder_of_the_run_alone(beside):
    assert inspect_model.main([beside.name, "--num_samples", "8", "--output_dir", "seen"]) == 0
    for name in ("along_sigma", "gap", "neighbours", "losses_by_sigma"):
        with Image.open(f"seen/{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_pictures_to_be_edited_are_read_as_the_run_read_its_own(beside, capsys):
    """Transparent pixels lie on the run's background, and pictures that are not square need its `center_crop`."""
    picture = Image.new("RGBA", (12, 8), (255, 255, 255, 0))
    picture.save("wide.png")
    words = [beside.name, "--images", "wide.png", "--num_inference_steps", "1"]
    assert edit.main(words) == 2
    assert "--center_crop" in capsys.readouterr().err
    for background, grey in (("black", 0), ("white", 255)):
        change_recipe(beside, center_crop=True, background=background)
        assert edit.main(words) == 0
        with Image.open("edits.png") as strip:
            assert (np.asarray(strip.convert("L"))[20:40, -40:-20] == grey).all(), "the picture as it was"


def test_what_a_run_says_next_can_be_pasted(beside, capsys):
    (beside.parent / "a 'model' of $HOME").symlink_to(beside)
    data = yaml.safe_load((beside / "recipe.yaml").read_text())["dataset_name"]
    recipe = Recipe(dataset_name=str(beside.parent / data), output_dir="a 'model' of $HOME")
    sample, evaluation, publish = (shlex.join(words) for words in next_commands(recipe, 64))
    assert program([*shlex.split(sample), "--num_samples", "2"]) == 0
    assert program([*shlex.split(evaluation), "--extractor", "pixels", "--cache_dir", "cache"]) == 0, (
        "64 images are few"
    )
    assert publish.endswith("--hub_model_id you/a-model-of-HOME")
    stayed = next_commands(Recipe(dataset_name=data, output_dir="m"), 50_000)[1]
    assert stayed == ["evaluate", "m"], "the folder itself says the rest"


def test_the_alpha_that_a_run_learnt_is_meant_and_gives_no_second_warning(beside, capsys):
    facts = json.loads((beside / "run.json").read_text())
    (beside / "run.json").write_text(json.dumps({**facts, "shape": [4, *facts["shape"][1:]]}))
    evaluated(beside.name)
    assert "--image_mode RGBA" in capsys.readouterr().out.splitlines()[0]
